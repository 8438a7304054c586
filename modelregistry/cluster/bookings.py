"""What replicas take of hosts' memory, as Ray is to know it: so that other work on the same cluster sees it. No Ray.

A node offers the memory of each GPU as a resource of its own, in MB, and its RAM as Ray's own resource `memory`, in
bytes; what a replica was promised there is booked by a placement group that outlives its driver. Ray's own `GPU` is not
offered: Ray chooses the cards that it gives of these itself, so it would give away one that an engine fills.

A booking holds nothing and starts nothing: engines run by the plan of memory, whether or not Ray can book what they
take.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from modelregistry.cluster.node_directory import RESOURCE
from modelregistry.process.gpus import RAM, Device

PREFIX = "madoguchi:"  # of the names of our placement groups
_NAME = re.compile(rf"{PREFIX}(?P<host>[^:]+):(?P<replica>.+ #\d+):(?P<digest>[0-9a-f]{{8}})", re.DOTALL)
RAM_RESOURCE = "memory"  # Ray's own
GPU_RESOURCE = "gpu-memory-mb:"  # and the index of the card, as `Device.index`
MB = 1_000_000
# A share of the host's one resource, which keeps a booking on its node; 999 fit beside the agent's.
SHARE = 0.001
LONGEST_INDEX = 4  # digits
CREATED = "CREATED"  # a placement group that holds what it asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBooking:
    """A placement group of ours as the head knows it. `node`: where it is, "" if it is not; `bundle`: what it asks."""

    group: str
    name: str
    state: str
    node: str
    bundle: Mapping[str, float]

    @property
    def host(self) -> str:
        return self.name.removeprefix(PREFIX).partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class BookingTable:
    """All bookings of ours, and what is left of the resources of each node that is alive, by its id."""

    bookings: Sequence[FoundBooking] = ()
    left: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """What is to be booked for one replica on one host. `amounts`: bytes by the index of the device."""

    host: str
    replica: str
    amounts: Mapping[int, int]

    @property
    def bundle(self) -> dict[str, float]:
        """Return what it asks of its node."""
        asked = {_resource(device): _quantity(device, size) for device, size in self.amounts.items() if size > 0}
        return {f"{RESOURCE}{self.host}": SHARE, **asked}

    @property
    def name(self) -> str:
        """Return the name of its placement group: another one for other amounts, as a group cannot be changed."""
        digest = hashlib.sha256(json.dumps(self.bundle, sort_keys=True).encode()).hexdigest()[:8]
        return f"{PREFIX}{self.host}:{self.replica}:{digest}"


def is_ours(name: str, bundle: Mapping[str, float]) -> bool:
    """Return whether a placement group is a booking of ours, by its whole name and what it asks of the host in it.

    Ray shows the groups of all namespaces, and other work may call its own as it likes.
    """
    found = _NAME.fullmatch(name)
    return found is not None and f"{RESOURCE}{found['host']}" in bundle


def offer(devices: Iterable[Device]) -> dict[str, float]:
    """Return what a node offers of its devices' memory. Ray keeps it for as long as the node lives."""
    return {_resource(one.index): math.floor(one.total / _unit(one.index)) for one in devices if one.total > 0}


def measure(resources: Mapping[str, float]) -> dict[int, int]:
    """Return the bytes by device that resources of Ray's stand for; others, and what is no number, are left out."""
    found = {}
    for name, quantity in resources.items():
        device = _device(name)
        if device is not None and math.isfinite(quantity):
            found[device] = round(quantity * _unit(device))
    return found


def _resource(device: int) -> str:
    return RAM_RESOURCE if device == RAM else f"{GPU_RESOURCE}{device}"


def _device(resource: str) -> int | None:
    if resource == RAM_RESOURCE:
        return RAM
    index = resource.removeprefix(GPU_RESOURCE)
    known = index != resource and index.isascii() and index.isdecimal() and len(index) <= LONGEST_INDEX
    return int(index) if known else None


def _unit(device: int) -> int:
    return 1 if device == RAM else MB


def _quantity(device: int, size: int) -> float:
    return float(math.ceil(size / _unit(device)))
