"""Callers and people of a site of two machines, who do not try again."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx2

from tests.restart.load import Answer, Call, Load
from tests.slapd import Colleague

PAGE = "/keys/"
PATIENCE = 60.0  # seconds that a person waits for a page


@dataclass
class SiteLoad(Load):
    """Streams and calls; a signed-in person asks for two pages a second, and one signs in every other one."""

    people: Sequence[Colleague] = ()
    _turn: Iterator[int] = field(default_factory=itertools.count)

    async def __aenter__(self) -> "SiteLoad":
        self._browser = self._open_browser()
        assert await self._sign_in_with(self._browser, self.people[0]) == ""
        await super().__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await super().__aexit__(*failure)
        await self._browser.aclose()

    def _calls(self) -> dict[str, tuple[float, Call]]:
        return {**super()._calls(), "sign-in": (0.5, self._sign_in)}

    def _open_browser(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, verify=self.trust, timeout=PATIENCE)

    async def _sign_in(self, answer: Answer) -> str:
        async with self._open_browser() as browser:
            return await self._sign_in_with(browser, self.people[next(self._turn) % len(self.people)])

    async def _sign_in_with(self, browser: httpx2.AsyncClient, person: Colleague) -> str:
        """Return why it failed; "": the browser has a session."""
        page = await browser.get("/sign-in/")
        if page.status_code != 200:
            return f"{page.status_code} for the form"
        form = {
            "username": person.uid,
            "password": person.password,
            "csrfmiddlewaretoken": browser.cookies["csrftoken"],
        }
        answer = await browser.post("/sign-in/", data=form, headers={"referer": f"{self.url}/sign-in/"})
        return "" if answer.status_code == 302 else f"{answer.status_code} for the password"

    async def _ask_for_page(self, answer: Answer) -> str:
        response = await self._browser.get(PAGE)
        return "" if response.status_code == 200 else f"{response.status_code} for the page"
