import contextlib
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from modelregistry import addresses
from modelregistry.cluster import head, join_server, node
from modelregistry.cluster.node_directory import FIRST_PORT, LAST_PORT
from modelregistry.cluster.site import ClusterSite, NoCluster
from modelregistry.host_port import split_host_port
from modelregistry.hostside import own_address
from modelregistry.install.engine_environments import RAY
from modelregistry.management.commands.removehost import explain_renewal
from modelregistry.plain_numbers import whole_number
from modelregistry.transfer import local

# Of the join server, of Ray and of copies of models on every machine, and of engines.
TAKEN = (range(join_server.PORT, local.PORTS.stop), range(FIRST_PORT, LAST_PORT + 1))

IN_WORDS = {
    "address-unknown": "The address %(address)s cannot be looked up.",
    "address-missing": "This machine does not have the address %(address)s (%(reason)s), at which the head listens.",
}


class Command(BaseCommand):
    help = (
        "Prepares a cluster of GPU hosts whose head is this machine: a token, an authority for certificates, and the "
        "head's own. Prints the command that runs the head."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("address", help="of this machine, as the hosts reach it")
        parser.add_argument(
            "--redis",
            metavar="HOST:PORT",
            help="a Redis with persistence, of the cluster's own: with it the head may be restarted at any time; "
            "without this option the one that was chosen before, with '' none",
        )
        parser.add_argument(
            "--port",
            type=whole_number,
            default=0,
            help=f"on which the head listens: {node.PORT}, or the one that was chosen before",
        )

    def handle(self, *args: Any, **options: Any) -> str:
        port = options["port"]
        if port and (not 1024 <= port < 65536 or _is_taken(port)):
            raise CommandError(f"The head listens on a port from 1024 to 65535, but not on {_taken_in_words()}.")
        site = ClusterSite(directory=settings.VAR / "cluster", cache=settings.CACHE)
        try:
            _check_address(options["address"])
            _check_redis(options["redis"])
            _check_port_of_redis(site, options["address"], options["redis"], port)
            before = _find_head(site)
            directory = site.create(options["address"], options["redis"], options["port"])
            has_moved = before not in ("", directory.access.address)
            written = site.invite_again() if has_moved else []
        except ValidationError as error:
            raise CommandError(error.messages[0]) from error
        except (NoCluster, OSError) as error:
            raise CommandError(str(error)) from error
        if written:
            self.stderr.write(
                f"The head was at {before} and is at {directory.access.address} now. Each host has to know.\n"
                f"{explain_renewal(written)}\nThen restart the head with the command below, and the service of each "
                "host (madoguchi-host), all within HOST_LEASE: engines go on for that long."
            )
        return f"{RAY.python(settings.CACHE)} -m modelregistry.cluster.head {directory.path}"


def check_reachable(address: str) -> None:
    """Refuse what is no address, or leads each machine to itself. Raises CommandError or ValidationError."""
    addresses.validate(address)
    if own_address.is_loopback(address):
        raise CommandError(f"No other machine comes here by {address}: give the address in the network of the hosts.")


def _check_address(address: str) -> None:
    """Refuse what is no address of this machine that hosts can reach. Raises CommandError or ValidationError."""
    check_reachable(address)
    if fault := own_address.find_fault(address):
        raise CommandError(IN_WORDS[fault.code] % {"address": fault.address, "reason": fault.reason})


def _check_redis(place: str | None) -> None:
    """Refuse what names no Redis; "" names none on purpose, None the one of before. Raises CommandError."""
    try:
        if place:
            split_host_port(place)
    except ValueError as error:
        raise CommandError(f"--redis: {error}") from error


def _check_port_of_redis(site: ClusterSite, address: str, place: str | None, port: int) -> None:
    """Refuse a Redis on this machine at a port that the head, or Ray, is to have. Raises CommandError."""
    with contextlib.suppress(ValueError):
        before = head.load(site.head)
        port = port or before.port
        place = before.redis if place is None else place
    if not place:
        return
    host, its_port = split_host_port(place)
    if (its_port == (port or node.PORT) or _is_taken(its_port)) and _is_this_machine(host, address):
        raise CommandError(
            f"The Redis {place} is on this machine, where port {its_port} is needed: the head listens on "
            f"{port or node.PORT} (--port), and {_taken_in_words()} are taken. Have it listen on another one."
        )


def _is_this_machine(host: str, address: str) -> bool:
    return host == address or own_address.is_loopback(host) or own_address.find_fault(host) is None


def _is_taken(port: int) -> bool:
    return any(port in ports for ports in TAKEN)


def _taken_in_words() -> str:
    return " and ".join(f"{ports.start} to {ports.stop - 1}" for ports in TAKEN)


def _find_head(site: ClusterSite) -> str:
    """Return where hosts that were invited look for the head; "": there is none yet."""
    with contextlib.suppress(ValueError):
        return head.load(site.head).access.address
    return ""
