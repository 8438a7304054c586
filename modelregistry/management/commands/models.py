import json
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, replace
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from modelregistry import overview
from modelregistry.database_clock import read_now
from modelregistry.evictions import PastEviction, read_evictions
from modelregistry.failure_advice import UNKNOWN, advise
from modelregistry.models import ModelCopy, PlacementGap, Replica, ReplicaShortage, ServedModel
from modelregistry.overview import DeviceNow, GapNow, HostNow, ModelNow, ModelState, Overview, ReplicaNow, ShortageNow
from modelregistry.terminal import clean, format_table

HEAD = [
    "MODEL",
    "ENGINE",
    "TASK",
    "HOST",
    "STATE",
    "MEMORY",
    "PLANNED",
    "TOKENS/S",
    "RUNNING",
    "WAITING",
    "SINCE",
    "DETAIL",
]
EVICTIONS_HEAD = ["TIME", "HOST", "UNLOADED", "FOR", "CALLS", "WAITED", "DRAINED", "LOADED"]
MOST_EVICTIONS = 100
STORED = ("loops", "loop_sensitivity", "sampling", "replicas_max")  # settings that no overview has
REASONS: dict[str, str] = {
    ReplicaShortage.Cause.NO_HOST: "no host takes models now",
    ReplicaShortage.Cause.NO_FILES: "no host that takes models has its files",
    ReplicaShortage.Cause.NO_ROOM: "no host that has its files has room for it",
    ReplicaShortage.Cause.USELESS: "the last one could not run where it was placed",
}
GAP_REASONS: dict[str, str] = {
    PlacementGap.Cause.NO_HOST: "too few hosts answer and are not in maintenance",
    PlacementGap.Cause.NO_FILES: "too few hosts have its files",
    PlacementGap.Cause.APART: "the hosts that have its files do not reach each other at their addresses",
}
WIDTH = 40  # characters of a device's bar
UNSUPERVISED = "(no controller: may be out of date)"
PARTS = {"weights": "#", "cache": "=", "overhead": "-", "others": "~"}


class Command(BaseCommand):
    help = "Shows the registered models, the state of each replica, and the memory of the hosts."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("names", nargs="*", metavar="MODEL", help="only these")
        parser.add_argument("--evictions", action="store_true", help="show which gave their place to others")
        parser.add_argument("--json", action="store_true", help="a list of objects, one for each model")

    def handle(self, *args: Any, **options: Any) -> str:
        names = set(options["names"])
        if unknown := names - set(ServedModel.objects.filter(name__in=names).values_list("name", flat=True)):
            raise CommandError(f"There is no model of this name: {', '.join(sorted(unknown))}.")
        if options["evictions"]:
            found = read_evictions(names=names, limit=MOST_EVICTIONS)
            return _describe_evictions(found, as_json=options["json"])
        seen = overview.read_overview(read_now())
        maintained = {host.name for host in seen.hosts if host.maintenance}
        if names:  # of hosts there is nothing to show then
            seen = replace(seen, hosts=(), models=tuple(model for model in seen.models if model.name in names))
        if options["json"]:
            rows = {row["name"]: row for row in ServedModel.objects.values("name", *STORED)}
            shown = [{**_as_object(model), **rows.get(model.name, {})} for model in seen.models]
            return json.dumps(shown, ensure_ascii=False, indent=2)
        return "\n".join(_lines(seen, maintained))


def _describe_evictions(found: Sequence[PastEviction], *, as_json: bool) -> str:
    if as_json:
        return json.dumps([asdict(one) | {"at": one.at.isoformat()} for one in found], ensure_ascii=False, indent=2)
    rows = [
        [
            timezone.localtime(one.at).strftime("%m-%d %H:%M:%S"),
            one.host,
            f"{one.model} #{one.number}",
            one.successor,
            str(one.calls or "-"),
            *map(_seconds, (one.waited_seconds, one.drain_seconds, one.load_seconds)),
        ]
        for one in found
    ]
    return "\n".join(format_table(EVICTIONS_HEAD, rows)) if rows else "No model was unloaded for another."


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"


def _as_object(model: ModelNow) -> dict[str, Any]:
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "engine": model.engine,
        "task": model.task,
        "host": model.host,
        "bound": model.bound,
        "enabled": model.enabled,
        "retires_on": model.retires_on,
        "pinned": model.pinned,
        "state": model.state.value,
        "tokens_per_second": model.tokens_per_second,
        "running": model.running,
        "waiting": model.waiting,
        "shortage": asdict(model.shortage) | {"since": model.shortage.since.isoformat()} if model.shortage else None,
        "gap": asdict(model.gap) | {"since": model.gap.since.isoformat()} if model.gap else None,
        "memory_bytes": model.memory,
        "predicted_bytes": model.predicted,
        "replicas": [
            {
                "number": replica.number,
                "rank": replica.rank,
                "ranks": replica.ranks,
                "host": replica.host,
                "moved_to": replica.moved_to,
                "supervised": replica.supervised,
                "state": replica.state,
                "launcher": replica.launcher,
                "version": replica.version,
                "devices": list(replica.devices),
                "slots": replica.slots,
                "pid": replica.pid,
                "memory_bytes": replica.memory,
                "predicted_bytes": replica.predicted,
                "ram_bytes": replica.ram,
                "slept": replica.slept,
                "tokens_per_second": replica.tokens_per_second,
                "running": replica.running,
                "waiting": replica.waiting,
                "restarts": replica.restarts,
                "since": replica.since.isoformat(),
                "cause": replica.cause,
                "detail": replica.detail,
            }
            for replica in model.replicas
        ],
    }


def _lines(seen: Overview, maintained: Set[str]) -> Iterable[str]:
    yield from format_table(HEAD, [row for model in seen.models for row in _rows(model, maintained)])
    for model in seen.models:
        yield from _describe_scaling(model)
    for replica in (replica for model in seen.models for replica in model.replicas):
        if advice := advise(replica.cause, replica.booked_by_others):
            yield f"{name_replica(replica)}: {advice}"
        elif replica.state in (Replica.State.FAILED, Replica.State.BACKOFF):
            yield f"{name_replica(replica)}: {UNKNOWN}"
            yield from (f"    {clean(line)}" for line in replica.detail.splitlines())
    yield from map(
        _describe_copy, ModelCopy.objects.exclude(state=ModelCopy.State.DONE).select_related("model", "host")
    )
    reporting = [host for host in seen.hosts if host.devices or host.problems or host.strangers]
    if reporting:
        yield ""
        yield " ".join(f"{sign} {part}" for part, sign in PARTS.items()) + " . free"
    for host in reporting:
        yield from _host(host)


def _describe_scaling(model: ModelNow) -> Iterable[str]:
    if model.most > model.wanted:
        yield f"{model.name}: {model.ready} of {model.wanted}-{model.most} replicas"
    if model.shortage:
        yield f"{model.name}: {describe_shortage(model.shortage)}"
    if model.gap:
        yield f"{model.name}: {describe_gap(model.gap)}"


def _describe_copy(copy: ModelCopy) -> str:
    share = f"{copy.done / max(copy.total, 1):.0%} of {copy.total / 1e9:.1f} GB"
    return clean(f"{copy.model.name}: files for {copy.host.name}: {copy.state}, {share}. {copy.detail}", 2000).rstrip()


def describe_shortage(one: ShortageNow) -> str:
    """Return why a model whose calls wait does not have one replica more, in one line."""
    since = timezone.localtime(one.since).strftime("%m-%d %H:%M:%S")
    need = f" of about {_gigabytes(one.need)}" if one.need else ""
    room = f" (most on {clean(one.host)}: {_gigabytes(one.free)}{need})" if one.host else ""
    return f"{one.wanted} replicas wanted since {since}, as calls wait long: {REASONS[one.cause]}{room}"


def describe_gap(one: GapNow) -> str:
    """Return why replicas of a model have no place, in one line."""
    since = timezone.localtime(one.since).strftime("%m-%d %H:%M:%S")
    hosts = f" ({one.hosts} of {one.needed} hosts could take a part)" if one.needed > 1 else ""
    return f"replicas without a place since {since}: {one.replicas}, as {GAP_REASONS[one.cause]}{hosts}"


NO_FILES = "waiting for a host that has its files"
GANG_UNPLACED = "waiting for {} hosts at a time that answer, are not in maintenance, and have its files"


IN_MAINTENANCE = "{} in maintenance"


def _rows(model: ModelNow, maintained: Set[str]) -> list[list[str]]:
    what = [model.name, model.engine, model.task]
    if not model.replicas:
        return [[*what, model.host or "-", _describe_missing(model), *["-"] * 6, ""]]
    held = _find_held(model, maintained)
    return [
        [*what, replica.host, _describe_state(replica), *_measures(replica, held.get(replica.number, ""))]
        for replica in model.replicas
    ]


def _find_held(model: ModelNow, maintained: Set[str]) -> dict[int, str]:
    """Return why replicas do not run, by their numbers, that the maintenance of any of their hosts stops."""
    if model.engine == "external" or not model.enabled or model.state == ModelState.RETIRED:
        return {}
    hosts: dict[int, list[str]] = defaultdict(list)
    for replica in model.replicas:
        if replica.host in maintained and not replica.moved_to:
            hosts[replica.number].append(replica.host)
    return {number: IN_MAINTENANCE.format(", ".join(names)) for number, names in hosts.items()}


def _describe_state(replica: ReplicaNow) -> str:
    rank = f"#{replica.number}, rank {replica.rank} of {replica.ranks}" if replica.ranks > 1 else ""
    more = ", ".join(filter(None, [rank, replica.slept]))
    return f"{replica.state} ({more})" if more else replica.state


def name_replica(replica: ReplicaNow) -> str:
    """Return what a replica, or its part on a host, is called in lines of text."""
    rank = f", rank {replica.rank} of {replica.ranks} on {replica.host}" if replica.ranks > 1 else ""
    return f"{replica.model} #{replica.number}{rank}"


def _describe_missing(model: ModelNow) -> str:
    if not model.enabled:
        return "disabled"
    if model.host:
        return "waiting for its supervisor"
    if model.engine == "external":
        return "waiting for a host"
    return GANG_UNPLACED.format(model.nodes) if model.nodes > 1 else NO_FILES


def _measures(replica: ReplicaNow, held: str) -> list[str]:
    since = timezone.localtime(replica.since).strftime("%m-%d %H:%M:%S")
    # The first line says what happened; the lines after it are of the engine's log.
    detail = replica.detail.partition("\n")[0][:120]
    if replica.state not in overview.ALIVE:
        detail = detail or held
    if replica.moved_to:
        detail = f"(moved to {clean(replica.moved_to)})"
    elif not replica.supervised:
        detail = " ".join([UNSUPERVISED, detail]).strip()
    return [
        _gigabytes(replica.memory) + (f" + {_gigabytes(replica.ram)} RAM" if replica.slept and replica.ram else ""),
        _gigabytes(replica.predicted),
        "-" if replica.tokens_per_second is None else f"{replica.tokens_per_second:.1f}",
        "-" if replica.running is None else str(replica.running),
        "-" if replica.waiting is None else str(replica.waiting),
        since,
        detail,
    ]


def _gigabytes(count: int | None) -> str:
    return f"{count / 1e9:.1f} GB" if count else "-"


def _host(host: HostNow) -> Iterable[str]:
    engines = ", ".join(f"{name} {version}".strip() for name, version in sorted(host.engines.items()))
    silent = "" if host.supervised else UNSUPERVISED
    yield " ".join(filter(None, [host.name, silent, engines]))
    for device in host.devices:
        yield f"  {device.name if device.kind == 'ram' else f'{device.index} {device.name}'}"
        yield f"  [{bar(device)}] {_figures(device)}"
    for found in host.strangers:
        held = _gigabytes(found.get("bytes"))
        yield f"  ! {clean(found.get('name') or 'a process')} ({found.get('pid')}) is not ours and holds {held}"
    for problem in host.problems:
        yield f"  ! {problem.get('code')}: {clean(str(problem.get('detail')))}"


def bar(device: DeviceNow) -> str:
    """Draw a bar of WIDTH characters. Each part begins where the one before ends, so that rounding never adds up."""
    drawn, held = "", 0
    for part, sign in PARTS.items():
        held += getattr(device, part)
        end = min(round(WIDTH * held / device.total), WIDTH) if device.total else 0
        drawn += sign * (end - len(drawn))
    return drawn.ljust(WIDTH, ".")


def _figures(device: DeviceNow) -> str:
    ours = f"ours {_gigabytes(device.ours)} (planned {_gigabytes(device.predicted)})"
    fault = f" ({device.fault})" if device.fault else ""
    return (
        f"{device.used / 1e9:.1f} of {device.total / 1e9:.1f} GB: {ours}, others {_gigabytes(device.others)},"
        f" free {device.free / 1e9:.1f} GB{fault}"
    )
