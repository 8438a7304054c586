import json
from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from modelregistry import hosts, overview
from modelregistry.models import Host
from modelregistry.overview import DeviceNow, HostNow, Overview
from modelregistry.terminal import clean, format_table

HEAD = ["HOST", "ADDRESS", "STATE", "SEEN", "DEVICES", "MODELS"]
SWITCH = {"on": True, "off": False}


class Command(BaseCommand):
    help = (
        "Shows the hosts, or changes one; its supervisor follows within seconds. In maintenance a host's engines "
        "finish running requests and stop, and it takes no models."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", help="the host to show or change; all without it")
        parser.add_argument("--address", help="where its engines listen and gateways reach them: they move there")
        parser.add_argument("--maintenance", choices=sorted(SWITCH))
        parser.add_argument("--remove", action="store_true", help="delete a host that is gone and has no models")
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
        seen = overview.read_overview(timezone.now())
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
        raise CommandError(f"There is no host {name} (known: {known}); its first `manage.py supervise` registers it.")
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
        "seen_at": host.seen_at.isoformat() if host.seen_at else None,
        "supervised": host.supervised,
        "devices": [{"name": one.name, "kind": one.kind, "total": one.total, "free": one.free} for one in host.devices],
        "models": _models(host, seen),
        "problems": [dict(problem) for problem in host.problems],
    }


def _lines(shown: list[HostNow], seen: Overview) -> Iterable[str]:
    if not shown:
        yield "There is no host yet; the first `manage.py supervise` on one registers it."
        return
    yield from format_table(HEAD, [_row(host, seen) for host in shown])
    for host in shown:
        for problem in host.problems:
            yield f"  ! {host.name}: {problem.get('code')}: {clean(str(problem.get('detail')))}"


def _row(host: HostNow, seen: Overview) -> list[str]:
    when = timezone.localtime(host.seen_at).strftime("%Y-%m-%d %H:%M:%S") if host.seen_at else "never"
    devices = ", ".join(map(_device, host.devices)) or "-"
    return [host.name, host.address, _state(host), when, devices, ", ".join(_models(host, seen)) or "-"]


def _state(host: HostNow) -> str:
    return " ".join(filter(None, ["alive" if host.supervised else "silent", "maintenance" if host.maintenance else ""]))


def _device(device: DeviceNow) -> str:
    return f"{device.name} {device.free / 1e9:.1f} of {device.total / 1e9:.1f} GB free"


def _models(host: HostNow, seen: Overview) -> list[str]:
    return [model.name for model in seen.models if model.host == host.name]
