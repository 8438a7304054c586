"""What calls that have ended leave in the gateway: none under way, and no tokens in a limit that no call has used."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx2

from tests.chaos.discrepancy import Discrepancy
from tests.installation import Installation

PLENTY = 10**11  # tokens of a tenant in a month: never reached, always counted
WHO = "leftovers"  # the end user of the calls that are made here
GROWTH = 60.0  # MB that a gateway may hold above what it had before the load


def limit_all(installation: Installation) -> None:
    installation.manage(
        "setquota", "--default-for", "tenant", "--unit", "tokens", "--per", "month", "--amount", f"{PLENTY}"
    )


def find_leftovers(
    installation: Installation, keys: Sequence[str], rows: Sequence[Mapping[str, Any]], model: str, resident: float
) -> Iterator[Discrepancy]:
    """Ask with a key of each tenant when no call is under way. `rows`: all that was recorded. `resident`: MB before."""
    left = [remaining_tokens(installation.url, key, model) for key in keys]
    used = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    if reserved := len(keys) * PLENTY - sum(left) - used:
        yield Discrepancy("reserved", f"limits count {reserved} tokens that no row has")
    if in_flight := calls_in_flight(installation.url):
        yield Discrepancy("in-flight", f"{in_flight:g} calls are under way although all have ended")
    if (now := resident_megabytes(installation)) > resident + GROWTH:
        yield Discrepancy("memory", f"the gateway holds {now:.0f} MB, before the load {resident:.0f} MB")


def remaining_tokens(url: str, key: str, model: str) -> int:
    """Return what a limit has left, from a call that uses and reserves nothing."""
    body = {"model": model, "messages": [{"role": "user", "content": "?"}], "user": WHO}
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx2.post(f"{url}/v1/messages/count_tokens", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return int(answer.headers["x-ratelimit-remaining-tokens"])


def calls_in_flight(url: str) -> float:
    text = httpx2.get(f"{url}/metrics", timeout=60).text
    return sum(float(value) for value in re.findall(r"^madoguchi_in_flight(?:{[^}]*})? (\S+)$", text, re.MULTILINE))


def resident_megabytes(installation: Installation) -> float:
    pid = installation.pid_of("apiproxy.server.gateway_worker")
    with open(f"/proc/{pid}/statm") as pages:
        return int(pages.read().split()[1]) * 4096 / 1e6
