import json
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from modelregistry import hosts, overview
from modelregistry.database_clock import read_now
from modelregistry.models import Host
from modelregistry.overview import (
    BookedNow,
    ControllerNow,
    DeviceNow,
    HostNow,
    HostReach,
    ModelNow,
    Overview,
    ReplicaNow,
)
from modelregistry.terminal import clean, format_table

HEAD = ["HOST", "ADDRESS", "REACHED", "STATE", "SEEN", "AGENT", "DEVICES", "BOOKED IN RAY", "MODELS"]
SWITCH = {"on": True, "off": False}


class Command(BaseCommand):
    help = (
        "Shows the hosts and the site's controller, or changes a host; the controller follows within seconds. In "
        "maintenance a host's engines finish running requests and stop, and it takes no models."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", help="the host to show or change; all without it")
        parser.add_argument("--address", help="where its engines listen and gateways reach them: they move there")
        parser.add_argument("--maintenance", choices=sorted(SWITCH))
        parser.add_argument(
            "--remove",
            action="store_true",
            help="delete a host that is gone and has no models of its own; one in the cluster only while it is silent",
        )
        parser.add_argument("--json", action="store_true", help="a list of objects, one for each host")

    def handle(self, *args: Any, **options: Any) -> str:
        name, values = options["name"], _changes(options)
        if name == "":
            raise CommandError("The name of a host is not empty; leave it out to see all.")
        if (values or options["remove"]) and not name:
            raise CommandError("Name the host to change.")
        if options["remove"] and values:
            raise CommandError("Remove the host or change it, not both.")
        if options["remove"]:
            _apply(hosts.remove_host, find_host(name))
            return str(name)
        if values:
            _apply(hosts.change_host, find_host(name), **values)
        seen = overview.read_overview(read_now())
        shown = [host for host in seen.hosts if name in (None, host.name)]
        if name and not shown:
            find_host(name)  # raises
        if options["json"]:
            return json.dumps([_as_object(host, seen) for host in shown], ensure_ascii=False, indent=2)
        return "\n".join(_lines(shown, seen))


def _changes(options: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if options["address"] is not None:
        changes["address"] = options["address"]
    if options["maintenance"]:
        changes["maintenance"] = SWITCH[options["maintenance"]]
    return changes


def find_host(name: str) -> Host:
    """Return the host of this name. Raises CommandError with the names that there are."""
    host = Host.objects.filter(name=name).first()
    if host is None:
        known = ", ".join(Host.objects.values_list("name", flat=True)) or "none yet"
        raise CommandError(f"There is no host {name} (known: {known}); it is added when it joins or supervises.")
    return host


def _apply(change: Any, *args: Any, **values: Any) -> None:
    try:
        change(*args, **values)
    except ValidationError as error:
        raise CommandError(" ".join(error.messages)) from error


def _as_object(host: HostNow, seen: Overview) -> dict[str, Any]:
    return {
        "name": host.name,
        "address": host.address,
        "maintenance": host.maintenance,
        "clustered": host.clustered,
        "reach": host.reach.value,
        "seen_at": _instant(host.seen_at),
        "silent_since": _instant(host.silent_since),
        "supervised": host.supervised,
        "agent": asdict(host.agent) if host.agent else None,
        "controller": _controller_object(seen.controller) if seen.controller else None,
        "devices": [{"name": one.name, "kind": one.kind, "total": one.total, "free": one.free} for one in host.devices],
        "bookings": [asdict(one) for one in host.bookings],
        "models": _models(host, seen),
        "replicas": [
            {
                "model": replica.model,
                "number": replica.number,
                "rank": replica.rank,
                "ranks": replica.ranks,
                "state": replica.state,
                "bound": model.bound,
                "moved_to": replica.moved_to,
            }
            for model, replica in _replicas(host, seen)
        ],
        "problems": [dict(problem) for problem in host.problems],
    }


def _controller_object(controller: ControllerNow) -> dict[str, Any]:
    """Return the site's controller, the same for all hosts."""
    times = {"since": _instant(controller.since), "seen_at": _instant(controller.seen_at)}
    return {**asdict(controller), **times}


def _lines(shown: list[HostNow], seen: Overview) -> Iterable[str]:
    if not shown:
        yield "There is no host yet: `manage.py supervise` adds its own, `manage.py addhost` those of a cluster."
        return
    yield from format_table(HEAD, [_row(host, seen) for host in shown])
    for host in shown:
        for problem in host.problems:
            yield f"  ! {host.name}: {problem.get('code')}: {clean(str(problem.get('detail')))}"
        for _model, replica in _replicas(host, seen):
            if replica.moved_to:
                yield f"  ! {host.name}: {replica.model} #{replica.number} was moved to {replica.moved_to}"
    if seen.controller:
        yield _describe_controller(seen.controller)


def _row(host: HostNow, seen: Overview) -> list[str]:
    return [
        host.name,
        host.address,
        "cluster" if host.clustered else "directly",
        _state(host),
        _local(host.seen_at) or ("made up" if host.seen_at else "never"),
        _describe_agent(host),
        ", ".join(map(_device, host.devices)) or "-",
        ", ".join(map(_booked, filter(_is_booked, host.bookings))) or "-",
        ", ".join(_named_models(host, seen)) or "-",
    ]


STATES = {HostReach.ONLINE: "alive", HostReach.SILENT: "silent", HostReach.UNWATCHED: "not supervised"}


def _state(host: HostNow) -> str:
    return " ".join(filter(None, [STATES[host.reach], "maintenance" if host.maintenance else ""]))


def _describe_agent(host: HostNow) -> str:
    if host.agent is None:
        return "-"
    return " ".join(
        filter(
            None,
            [
                host.agent.version,
                f"Python {host.agent.python}" if host.agent.python else "",
                f"boot {host.agent.boot[:8]}" if host.agent.boot else "",
                "no fence" if host.agent.fenced is False else "",
            ],
        )
    )


def _describe_controller(controller: ControllerNow) -> str:
    state = "since" if controller.alive else "NOT HEARD OF since"
    when = _local(controller.since if controller.alive else controller.seen_at) or "?"
    return f"controller: {clean(controller.holder)}, term {controller.term}, {state} {when}"


def _local(at: datetime | None) -> str:
    if at is None or at == overview.MADE_UP:
        return ""
    return timezone.localtime(at).strftime("%Y-%m-%d %H:%M:%S")


def _instant(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def _device(device: DeviceNow) -> str:
    return f"{device.name} {device.free / 1e9:.1f} of {device.total / 1e9:.1f} GB free"


def _is_booked(one: BookedNow) -> bool:
    return bool(one.booked or one.others)


def _booked(one: BookedNow) -> str:
    others = f" + {one.others / 1e9:.1f} by others" if one.others else ""
    return f"{one.memory} {one.booked / 1e9:.1f}{others} of {one.offered / 1e9:.1f} GB"


def _models(host: HostNow, seen: Overview) -> list[str]:
    there = {replica.model for _model, replica in _replicas(host, seen) if not replica.moved_to}
    return [model.name for model in seen.models if model.host == host.name or model.name in there]


def _named_models(host: HostNow, seen: Overview) -> list[str]:
    """Return the models of a host, those that are split over several with the rank that it has."""
    ranks = {
        replica.model: f"{replica.model} (rank {replica.rank} of {replica.ranks})"
        for _model, replica in _replicas(host, seen)
        if replica.ranks > 1 and not replica.moved_to
    }
    return [ranks.get(name, name) for name in _models(host, seen)]


def _replicas(host: HostNow, seen: Overview) -> list[tuple[ModelNow, ReplicaNow]]:
    """Return the replicas that are on a host, with their models."""
    return [(model, replica) for model in seen.models for replica in model.replicas if replica.host == host.name]
