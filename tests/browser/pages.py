"""What browser tests do and ask on any page."""

import re
from pathlib import Path
from typing import Any

from django.conf import settings
from django.test import Client
from playwright.sync_api import Page

from portal.accounts.models import User

# Names that pages must have room for.
LONG_KEY = "夜間バッチ-議事録の要約とタグ付けを行うとても長い名前のキー（本番環境サーバー用）"
LONG_MODEL = "llama-3.3-70b-instruct-awq-with-a-name-that-does-not-end-where-a-telephone-does"
REFUSED_FORM = r"status of 400 \(Bad Request\)"  # on the console, of a form that is shown again
LONG_TENANT = "研究開発本部 第二研究部 生成系人工知能基盤グループ"

JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")

LOOKS = Path(__file__).with_name("looks.js").read_text()


def sign_in(page: Page, username: str = "alice", password: str = "correct horse") -> None:
    page.goto("/")
    page.locator("[name=username]").fill(username)
    page.locator("[name=password]").fill(password)
    page.locator("main form button").click()
    page.locator("[action='/sign-out/']").wait_for(state="attached")


def enter(page: Page, site: str, username: str) -> None:
    """Sign the browser in without the sign-in page, which is walked elsewhere."""
    client = Client()
    client.force_login(User.objects.get(username=username), "portal.accounts.backends.LocalBackend")
    cookie = client.cookies[settings.SESSION_COOKIE_NAME].value
    page.context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": cookie, "url": site}])


def looks(page: Page, question: str) -> Any:
    """Return the answer of one of the functions in looks.js."""
    return page.evaluate(f"{LOOKS}\n{question}()")
