"""Pages on a real PostgreSQL that has few connections, none to spare, is away, or says nothing."""

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import psycopg
import pytest

from tests.installation import Installation, installed
from tests.postgres import Postgres, postgres
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)  # all of an installation starts

SESSIONS = 50
POOL = 5
TIMEOUT = 2  # DATABASE_TIMEOUT
LIMIT = 25.0  # seconds in which anybody has an answer, on a busy machine too
PATHS = ("/keys/", "/usage/", "/api/v1/me/", "/usage/export/")
PEOPLE = """
from django.test import Client
from portal.accounts.models import Membership, Tenant, User
tenant = Tenant.objects.create(slug="research", name="研究部")
for n in range({sessions}):
    user = User.objects.create(username=f"user{{n}}", is_staff=not n)
    Membership.objects.create(user=user, tenant=tenant)
    client = Client()
    client.force_login(user, "portal.accounts.backends.LocalBackend")
    print(client.cookies["sessionid"].value)
"""


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres("max_connections=30") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def portal(database, tmp_path_factory) -> Iterator[Installation]:
    env = {"DATABASE_URL": database.url, "DATABASE_POOL": str(POOL), "DATABASE_TIMEOUT": str(TIMEOUT)}
    with installed(tmp_path_factory.mktemp("var"), **env) as installation:
        installation.start()
        yield installation


@pytest.fixture(scope="module")
def sessions(portal) -> list[str]:
    return portal.manage("shell", "--verbosity", "0", "--command", PEOPLE.format(sessions=SESSIONS)).split()


def ask(portal: Installation, session: str, *paths: str, language: str = "en") -> list[tuple[int, str, float]]:
    """Ask as one browser does, over one connection, and return status, body and seconds of each."""
    found = []
    connection = http.client.HTTPConnection("127.0.0.1", portal.port, timeout=60)
    for path in paths:
        began = time.monotonic()
        connection.request("GET", path, headers={"cookie": f"sessionid={session}", "accept-language": language})
        answer = connection.getresponse()
        found.append((answer.status, answer.read().decode(), time.monotonic() - began))
    connection.close()
    return found


def test_p0_fifty_sessions_walk_on_thirty_connections(portal, database, sessions):
    with ThreadPoolExecutor(10) as people:  # more at once would wait for processors
        walks = people.map(lambda session: ask(portal, session, *PATHS), sessions)
        assert {status for walk in walks for status, _, _ in walk} == {200}
    taken = "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
    ((connections,),) = database.rows(taken)
    assert connections <= POOL + 5  # the gateway's and the supervisor's threads


def test_p0_an_answer_that_breaks_off_leaves_its_connection_behind(portal, sessions):
    for session in islice(cycle(sessions), 3 * POOL):
        connection = http.client.HTTPConnection("127.0.0.1", portal.port)
        connection.request("GET", "/usage/", headers={"cookie": f"sessionid={session}"})
        connection.close()
    assert ask(portal, sessions[0], "/")[0][0] == 200


def test_p0_without_a_connection_to_spare_a_page_says_so_within_seconds(portal, database, sessions):
    with psycopg.connect(database.url) as holder:
        holder.execute("lock table accounts_user")  # every page waits for it
        with ThreadPoolExecutor(4 * POOL) as people:
            answers = list(people.map(lambda session: ask(portal, session, "/usage/")[0], sessions[: 4 * POOL]))
    assert {status for status, _, _ in answers} == {503}
    assert max(seconds for _, _, seconds in answers) < LIMIT
    assert ask(portal, sessions[0], "/usage/")[0][0] == 200


def test_o10_a_frozen_database_is_a_page_in_words_within_seconds(portal, database, sessions):
    assert ask(portal, sessions[0], "/")[0][0] == 200
    explained = "/requests/req_0123456789/"  # it is not said that the request is not known
    with database.frozen(), ThreadPoolExecutor(3) as people:
        pages = [people.submit(ask, portal, sessions[0], path, language="ja") for path in ("/", explained)]
        program = people.submit(ask, portal, sessions[1], "/api/v1/me/")
        shown = [page.result()[0] for page in pages]
        ((code, problem, _),) = program.result()
    assert [status for status, _, _ in shown] == [503, 503]
    assert code == 503
    assert max(seconds for _, _, seconds in shown) < LIMIT
    assert all('lang="ja"' in text for _, text, _ in shown)
    assert json.loads(problem)["status"] == 503
    until(lambda: ask(portal, sessions[0], "/")[0][0] == 200)


def test_o10_a_database_that_is_back_is_used_again(portal, database, sessions):
    database.stop()
    try:
        ((status, _, seconds),) = ask(portal, sessions[0], "/")
        assert status == 503
        assert seconds < LIMIT
    finally:
        database.start()
    until(lambda: ask(portal, sessions[0], "/")[0][0] == 200, LIMIT)
    assert "Traceback" not in "".join(part for part in portal.log.splitlines() if "django.request" in part)
