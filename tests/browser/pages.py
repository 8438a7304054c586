"""What browser tests do and ask on any page."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

LOOKS = Path(__file__).with_name("looks.js").read_text()


def sign_in(page: Page, username: str = "alice") -> None:
    page.goto("/")
    page.locator("[name=username]").fill(username)
    page.locator("[name=password]").fill("correct horse")
    page.locator("main form button").click()
    page.locator("[action='/sign-out/']").wait_for(state="attached")


def looks(page: Page, question: str) -> Any:
    """The answer of one of the functions in looks.js."""
    return page.evaluate(f"{LOOKS}\n{question}()")
