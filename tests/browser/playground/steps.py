"""What tests do in the playground, and what its engine is made to do."""

import json
from typing import Any

from playwright.sync_api import Page, Route, expect

from tests import engine
from tests.engine import DONE, FINISH, SSE, chunk, event, usage_event


def play(page: Page, steps: list[dict[str, Any]]) -> None:
    """Make the engine do this with the page's calls from now on."""

    def with_script(route: Route) -> None:
        route.continue_(post_data=json.dumps({**(route.request.post_data_json or {}), "script": steps}))

    page.unroute("**/v1/**")
    page.route("**/v1/**", with_script)


def say(page: Page, text: str) -> None:
    page.locator("[data-prompt]").fill(text)
    page.locator("[data-send]").click()


def open_settings(page: Page) -> None:
    page.locator("[data-settings] > summary").click()


def answered(page: Page, count: int = 1) -> None:
    """Return once so many answers are complete."""
    expect(page.locator(".turn.model .figures[data-tokens-out]")).to_have_count(count, timeout=60_000)
    expect(page.locator("[data-stop]")).to_be_hidden()


def calls(engine_: engine.Running) -> list[dict[str, Any]]:
    return [request["body"] for request in engine_.seen()["requests"]]


def delta(**more: Any) -> str:
    return chunk(event([{"index": 0, "delta": more, "finish_reason": None}]))


def answer_of(text: str, pieces: int = 1) -> list[dict[str, Any]]:
    """Return the steps of an engine that answers with this text, in so many pieces."""
    size = max(1, -(-len(text) // pieces))
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    return [
        {"send": SSE},
        *({"send": delta(content=part)} for part in parts),
        {"send": chunk(FINISH + usage_event(7, 9) + DONE) + "0\r\n\r\n"},
    ]
