"""A seminar's day with real parts: slapd, a running portal and gateway, and more people at once than it has places.

sign in -> join, each in two windows at the same time -> a first call with the new key -> the organiser sees all -> the
seminar ends -> 401
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx2
import pytest
from django.utils import timezone

from portal.lessons.seminars import CODE_LENGTH
from tests import engine
from tests.engine import DONE, FINISH, SSE, chunk, usage_event
from tests.html import all_of, one_of, texts
from tests.installation import Installation, installed
from tests.portal.browsing import WHOLE_KEY
from tests.slapd import Directory
from tests.waiting import until

PLACES = 30
PEOPLE = [f"guest{number:02}" for number in range(PLACES + 2)]
NAMED = PEOPLE[:3]  # who join without the code
HIDDEN = re.compile(r'<input type="hidden" name="csrfmiddlewaretoken" value="([^"]*)"')
CHAT = [{"send": SSE}, {"send": chunk(FINISH + usage_event(11, 4) + DONE) + "0\r\n\r\n"}]


class Person:
    """A person's browser, and the program that they try their key with."""

    def __init__(self, url: str, name: str, password: str) -> None:
        self.url, self.name, self.password = url, name, password
        self.browser = httpx2.Client(base_url=url, headers={"accept-language": "en", "referer": url}, timeout=60)
        self.keys: list[str] = []
        self.refusals = 0

    def read(self, path: str) -> str:
        response = self.browser.get(path)
        assert response.status_code == 200, (self.name, path, response.status_code)
        return response.text

    def send(self, path: str, to: str = "", **fields: str) -> httpx2.Response:
        """Post the form that is on the page at `path`."""
        token = HIDDEN.search(self.read(path))
        assert token
        return self.browser.post(to or path, data={"csrfmiddlewaretoken": token[1], **fields})

    def sign_in(self) -> None:
        response = self.send("/sign-in/", username=self.name, password=self.password)
        assert response.status_code == 302, (self.name, response.status_code)

    def join(self, path: str, **code: str) -> None:
        """Press the button in two windows at the same time."""
        page = self.read(path)
        token = HIDDEN.search(page)
        assert token
        form = {"csrfmiddlewaretoken": token[1], **code}
        both = threading.Barrier(2)

        def press(window: httpx2.Client) -> httpx2.Response:
            both.wait()
            return window.post(path, data=form)

        windows = [
            httpx2.Client(base_url=self.url, headers=self.browser.headers, cookies=self.browser.cookies, timeout=60)
            for _ in range(2)
        ]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(press, windows))
        assert {answer.status_code for answer in answers} <= {200, 400}
        self.keys = [found[0] for answer in answers if (found := WHOLE_KEY.search(answer.text))]
        self.refusals = sum(answer.status_code == 400 for answer in answers)

    def call(self) -> int:
        body = {"model": "plain", "messages": [{"role": "user", "content": "hello"}], "stream": True, "script": CHAT}
        headers = {"authorization": f"Bearer {self.keys[0]}"}
        response = httpx2.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        return response.status_code


@pytest.fixture(scope="module")
def installation(directory: Directory, tmp_path_factory) -> Iterator[Installation]:
    for name in PEOPLE:
        directory.hire(name, "research")
    try:
        with engine.running() as fake, installed(tmp_path_factory.mktemp("var"), **directory.env()) as place:
            place.furnish(fake.url)
            place.start()
            yield place
    finally:
        for name in PEOPLE:
            directory.dismiss(name)


def at_once(people: list[Person], do: Callable[[Person], object]) -> None:
    with ThreadPoolExecutor(len(people)) as pool:
        list(pool.map(do, people))


def seen(page: str) -> list[int]:
    """Return how many have joined, have a key, and were answered, as the organiser's page says."""
    return [int(one_of(page, f"[{name}]").text) for name in ("data-joined", "data-with-key", "data-answered")]


def test_thirty_people_are_taught_and_their_keys_end_with_the_seminar(installation, directory, capsys):
    began = time.monotonic()
    organiser = Person(installation.url, "bob", directory.people["bob"].password)
    guests = [Person(installation.url, name, directory.people[name].password) for name in PEOPLE]
    at_once([organiser, *guests], Person.sign_in)
    signed_in = time.monotonic() - began

    now = timezone.now().replace(second=0, microsecond=0)
    plan = {"tenant": "research", "course": "everyone", "places": PLACES, "tokens": 5000}
    hours = {"begins_at": now.isoformat(), "ends_at": (now + timedelta(hours=1)).isoformat()}
    headers = {"x-csrftoken": organiser.browser.cookies["csrftoken"]}
    opened = organiser.browser.post("/api/v1/seminars/", json={**plan, **hours}, headers=headers)
    assert opened.status_code == 201, opened.text
    seminar = f"/lessons/seminars/{opened.json()['id']}/"
    assert organiser.send(seminar, f"{seminar}people/", names="\n".join(NAMED)).status_code == 302
    [code] = texts(organiser.read(seminar), "[data-code]")
    assert len(code.replace("-", "")) == CODE_LENGTH

    def join(guest: Person) -> None:
        if guest.name in NAMED:
            guest.join(f"{seminar}join/")
        else:
            guest.join("/lessons/join/", code=code)

    at_once(guests, join)
    joined = time.monotonic() - began
    taught = [guest for guest in guests if guest.keys]
    assert len(taught) == PLACES
    assert [guest.keys for guest in taught if len(guest.keys) != 1] == []  # one key of two windows
    assert set(NAMED) <= {guest.name for guest in taught}  # their places were kept
    assert [guest.refusals for guest in guests if not guest.keys] == [2, 2]
    rows = installation.read("select count(*), count(distinct user_id) from keys_apikey where purpose != ''")
    assert rows == [(PLACES, PLACES)]

    at_once(taught, lambda guest: until(lambda: guest.call() == 200, 30))
    until(lambda: seen(organiser.read(seminar)) == [PLACES] * 3)
    took = time.monotonic() - began
    assert took < 300

    assert organiser.send(seminar, f"{seminar}end/").status_code == 302
    ended = time.monotonic()
    at_once(taught, lambda guest: until(lambda: guest.call() == 401, 20))
    stopped = time.monotonic() - ended
    assert all_of(organiser.read(seminar), "[data-ended]")
    with capsys.disabled():
        print(
            f"\n{len(guests)} people: signed in after {signed_in:.1f} s, {PLACES} joined after {joined:.1f} s, all"
            f" answered and seen after {took:.1f} s; keys stopped {stopped:.1f} s after the end"
        )
