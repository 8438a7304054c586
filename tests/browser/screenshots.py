"""python -m tests.browser.screenshots: the pictures in the READMEs, of the company that `make demo-data` makes up."""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import django
from playwright.sync_api import Browser, sync_playwright

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
django.setup()

from tests.browser.conftest import CHROMIUM, LOCALES, QUIET
from tests.browser.pages import sign_in
from tests.installation import ROOT, Installation, installed
from tests.waiting import until

PICTURES = ROOT / "deploy" / "pictures"


@dataclass(frozen=True)
class Picture:
    name: str
    who: str
    path: str
    language: str
    scheme: Literal["light", "dark"]
    height: int


WANTED = (
    Picture("home", "demo.employee", "/", "ja", "light", 1000),
    Picture("usage", "demo.operator", "/usage/?of=all&period=30", "en", "dark", 1000),
    Picture("use-cases", "demo.employee", "/use-cases/", "ja", "light", 1000),
    Picture("operations", "demo.operator", "/operations/", "ja", "light", 1000),
)


def take(browser: Browser, site: Installation, password: str, picture: Picture) -> None:
    context = browser.new_context(
        base_url=site.url,
        locale=LOCALES[picture.language],
        color_scheme=picture.scheme,
        viewport={"width": 1280, "height": picture.height},
    )
    context.set_default_timeout(60_000)
    page = context.new_page()
    sign_in(page, picture.who, password)
    page.goto(picture.path)
    page.wait_for_timeout(2000)  # charts are drawn, sockets have sent their first frame
    page.screenshot(path=PICTURES / f"{picture.name}.png")
    context.close()


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as var, installed(Path(var)) as site, sync_playwright() as playwright:
        found = re.search(r"^\s+password\s+(\S+)$", site.manage("demodata"), re.MULTILINE)
        assert found
        site.start()
        until(site.answers)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        for picture in WANTED:
            take(browser, site, found[1], picture)
        browser.close()


if __name__ == "__main__":
    main()
