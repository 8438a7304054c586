"""A worker that asks for many calls at once and keeps them open: `python -m tests.limits_worker` with JSON on stdin.

{"url", "unit", "amount", "calls", "estimate", "now"} -> on stdout how many calls were let through; ends with its stdin.
"""

import asyncio
import json
import sys
from zoneinfo import ZoneInfo

from apiproxy.dataplane.catalogue import Counter, Limit
from apiproxy.dataplane.errors import Refusal
from apiproxy.dataplane.limits.local import Spending
from apiproxy.dataplane.limits.units import UNITS, Consumption
from tests.apiproxy.dataplane.limits.budgets import shared_limits


async def nothing_spent(_limit: Limit, _now: float) -> Spending:
    return Spending(0, 0.0)


async def work(url: str, unit: str, amount: int, calls: int, estimate: int, now: float) -> None:
    shared = shared_limits(url, nothing_spent, workers=2)
    await shared.start()
    window = "" if unit == "concurrent" else "day"
    budget = [Limit(Counter("tenant", 1, None, UNITS[unit], window), amount, ZoneInfo("Asia/Tokyo"))]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    answers = await asyncio.gather(
        *(shared.admit(budget, 1, Consumption(estimate), now) for _ in range(calls)), return_exceptions=True
    )
    unexpected = [answer for answer in answers if isinstance(answer, Exception) and not isinstance(answer, Refusal)]
    print(json.dumps({"let": sum(not isinstance(answer, Refusal) for answer in answers), "wrong": repr(unexpected)}))
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    await shared.close()


if __name__ == "__main__":
    asyncio.run(work(**json.loads(sys.stdin.readline())))
