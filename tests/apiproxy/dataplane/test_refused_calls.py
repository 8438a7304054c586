"""Of refused calls the first are kept, so that their callers can look up why; a flood hides no one else's."""

from dataclasses import replace

from apiproxy.dataplane.errors import BadRequest, InvalidKey
from apiproxy.dataplane.refused_calls import (
    PER_CALLER,
    PER_KEY,
    PER_MINUTE,
    UNKNOWN_PER_ADDRESS,
    UNKNOWN_PER_MINUTE,
    RefusedCalls,
)
from tests.apiproxy import served


def flood(calls: RefusedCalls, *, user: int | None, keys: int, reasons: int, now: float) -> int:
    """Refuse calls of many keys of a person, for many reasons; return how many of them are kept."""
    for key in range(keys):
        for reason in range(reasons):
            for number in range(PER_KEY + 1):
                name = f"{user}:{key}:{reason}:{number}"
                calls.note(
                    BadRequest(f"r{reason}"),
                    replace(served.KEY, id=100 * (user or 0) + key, user=user),
                    name,
                    None,
                    now,
                )
    return len(calls.take())


def test_of_a_key_and_reason_the_first_of_a_minute_are_kept():
    calls = RefusedCalls()
    assert flood(calls, user=1, keys=1, reasons=1, now=1000.0) == PER_KEY
    assert flood(calls, user=1, keys=1, reasons=1, now=1030.0) == 0
    assert flood(calls, user=1, keys=1, reasons=1, now=1061.0) == PER_KEY


def test_one_person_with_many_keys_and_reasons_leaves_room_for_others():
    calls = RefusedCalls()
    assert flood(calls, user=1, keys=50, reasons=20, now=1000.0) == PER_CALLER < PER_MINUTE
    assert flood(calls, user=2, keys=1, reasons=1, now=1000.0) == PER_KEY
    assert flood(calls, user=None, keys=1, reasons=20, now=1000.0) == PER_CALLER


def unknown(calls: RefusedCalls, digest: str, address: str) -> None:
    calls.note(InvalidKey("invalid_api_key", digest=digest), None, digest, None, 1000.0, address)


def test_a_flood_of_unknown_keys_hides_neither_a_revoked_key_elsewhere_nor_keys_that_are_known():
    calls = RefusedCalls()
    for number in range(10_000):
        unknown(calls, f"made up {number}", "10.0.0.1")
    unknown(calls, "revoked", "10.0.0.2")
    assert [one.digest for one in calls.take()] == [*(f"made up {n}" for n in range(UNKNOWN_PER_ADDRESS)), "revoked"]
    for number in range(10_000):
        unknown(calls, f"made up {number}", f"10.1.{number // 250}.{number % 250}")
    assert len(calls.take()) == UNKNOWN_PER_MINUTE - UNKNOWN_PER_ADDRESS - 1
    assert flood(calls, user=1, keys=1, reasons=1, now=1000.0) == PER_KEY
