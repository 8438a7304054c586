"""The bookings of `bookings`, as placement groups of Ray's. A part of the driver: it imports Ray, and blocks."""

from collections.abc import Mapping
from typing import Any

from ray._private.state import available_resources_per_node  # the public one sums over all nodes
from ray._raylet import PlacementGroupID
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from modelregistry.cluster.bookings import is_ours

GONE = "REMOVED"  # Ray keeps such groups in its table for a while


def carry_out(request: Mapping[str, Any]) -> Any:
    """Carry out a request about bookings and return its answer; raises what Ray raises."""
    match request["do"]:
        case "list-bookings":
            return list_bookings()
        case "book":
            return book(request["name"], request["bundle"])
        case "unbook":
            return unbook(request["group"])
    raise ValueError(f"unknown request {request['do']!r}")


def list_bookings() -> dict[str, Any]:
    """Return our placement groups, and what is left of each node's resources."""
    found = []
    for group, facts in placement_group_table().items():
        bundle: Mapping[str, float] = next(iter(facts["bundles"].values()), {})
        if facts["state"] != GONE and is_ours(facts["name"], bundle):
            found.append(
                {
                    "group": group,
                    "name": facts["name"],
                    "state": facts["state"],
                    "node": next(iter(facts["bundles_to_node_id"].values()), ""),
                    "bundle": bundle,
                }
            )
    return {"bookings": found, "left": available_resources_per_node()}


def book(name: str, bundle: Mapping[str, float]) -> str:
    """Ask for a booking, which outlives this process; it is made when its node has what it asks for."""
    made = placement_group([dict(bundle)], strategy="STRICT_PACK", name=name, lifetime="detached")
    return str(made.id.hex())


def unbook(group: str) -> bool:
    """Give a booking up; one that is gone already is none."""
    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    return True
