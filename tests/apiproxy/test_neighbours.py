"""What the gateway leans on goes away and comes back: the database, the disk, the clock. Calls and metering go on."""

import concurrent.futures
import resource
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import psycopg
import pytest

from apiproxy.dataplane.ledger import SEGMENT_BYTES
from apiproxy.server.asgi import LAST_MOVE, STAYS_IN_SPOOL
from modelregistry.version import VERSION
from portal.keys import secret
from portal.quotas.models import Quota
from portal.usage.models import UsageRecord
from tests import engine
from tests.engine import DONE, FINISH, SSE, chunk, usage_event
from tests.installation import Installation, installed
from tests.output import lines_of
from tests.postgres import Postgres, multi_host_url, postgres, standby_of
from tests.waiting import until

DAY = 86400.0
END = chunk(FINISH + usage_event(11, 4) + DONE) + "0\r\n\r\n"


@dataclass
class Place:
    """A running portal in front of a fake engine."""

    installation: Installation
    engine: engine.Running
    key: str

    def __post_init__(self) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        self.http = httpx2.Client(base_url=self.installation.url, headers=headers, timeout=20)

    def body(self, **more) -> dict:
        return {"model": "plain", "messages": [], **more}

    def chat(self, **more) -> httpx2.Response:
        return self.http.post("/v1/chat/completions", json=self.body(**more))

    def ids(self, count: int) -> set[str]:
        """Send this many calls, streamed and not; return their request ids. Each must be answered, and at once."""
        ids = set()
        for number in range(count):
            begun = time.monotonic()
            answer = self.chat(stream=number % 2 == 0)
            assert answer.status_code == 200
            assert time.monotonic() - begun < 2
            ids.add(answer.headers["x-request-id"])
        return ids


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    with engine.running() as fake, installed(tmp_path / "var") as installation:
        key = installation.furnish(fake.url)
        installation.serve()
        until(installation.answers)
        yield Place(installation, fake, key)


# --- the database


@pytest.fixture
def database() -> Iterator[Postgres]:
    with postgres() as cluster:
        yield cluster


def test_a_database_that_is_away_stops_no_call_and_loses_no_usage(database, tmp_path):
    def read_recorded() -> list[str]:
        return [request_id for (request_id,) in database.rows("select request_id from usage_usagerecord")]

    with engine.running() as fake, installed(tmp_path / "var", DATABASE_URL=database.url) as installation:
        place = Place(installation, fake, installation.furnish(fake.url))
        installation.serve()
        until(installation.answers)
        before = place.ids(4)
        until(lambda: sorted(read_recorded()) == sorted(before))

        database.stop()
        away = place.ids(10)
        until(lambda: "the last catalogue stays in force" in installation.log)
        until(lambda: "usage waits in the spool" in installation.log)
        away |= place.ids(10)
        assert place.http.get("/v1/models").status_code == 200
        stranger = {"authorization": f"Bearer {secret.make_secret()}"}
        assert place.http.get("/v1/models", headers=stranger).status_code == 401
        thumb = {"request_id": min(before), "score": 1}
        refused = place.http.post("/v1/feedback", json=thumb)  # whose request it is, only the database knows
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "feedback_unavailable")
        assert refused.headers["retry-after"] == "30"
        database.start()
        until(lambda: sorted(read_recorded()) == sorted(before | away))
        assert place.http.post("/v1/feedback", json=thumb).json()["status"] == "recorded"

        # Away again, and this time the gateway dies meanwhile: a cold start needs the database, the spool waits.
        database.stop()
        away |= place.ids(6)
        installation.process.kill()
        installation.process.wait()
        installation.serve()
        assert installation.process.wait(30) != 0
        database.start()
        installation.serve()
        until(installation.answers)
        assert sorted(read_recorded()) == sorted(before | away)
        assert place.chat().status_code == 200


def test_a_database_that_hangs_does_not_keep_the_gateway_from_ending(database, tmp_path):
    with engine.running() as fake, installed(tmp_path / "var", DATABASE_URL=database.url) as installation:
        place = Place(installation, fake, installation.furnish(fake.url))
        installation.serve()
        until(installation.answers)
        with psycopg.connect(database.url) as other:
            other.execute("lock table usage_usagerecord in access exclusive mode")
            calls = place.ids(4)
            until(lambda: waiting(other) == 1)
            begun = time.monotonic()
            installation.process.terminate()
            assert installation.process.wait(30) == -signal.SIGTERM  # as uvicorn ends when all is in order
            assert time.monotonic() - begun < LAST_MOVE + 5
            assert lines_of(STAYS_IN_SPOOL, installation.log)
            other.rollback()
        installation.serve()
        until(installation.answers)
        until(lambda: calls <= {name for (name,) in database.rows("select request_id from usage_usagerecord")})


def test_a_gateway_goes_on_with_a_promoted_standby_and_forgets_a_key_that_it_lacks(database, tmp_path):
    with (
        engine.running() as fake,
        standby_of(database) as standby,
        installed(tmp_path / "var", DATABASE_URL=multi_host_url(database, standby)) as installation,
    ):
        place = Place(installation, fake, installation.furnish(fake.url))
        installation.serve()
        until(installation.answers)
        position = database.rows("select pg_current_wal_lsn()::text")[0][0]
        until(lambda: standby.rows(f"select pg_last_wal_replay_lsn() >= '{position}'") == [(True,)])
        standby.stop()
        late = Place(installation, fake, installation.manage("createkey", "--tenant", "research", "--service", "late"))
        until(lambda: late.chat().status_code == 200)
        database.stop()
        assert place.chat().status_code == 200
        standby.start()
        standby.promote()
        until(lambda: late.chat().status_code == 401)
        (made,) = place.ids(1)
        until(lambda: standby.rows(f"select 1 from usage_usagerecord where request_id = '{made}'"))


def waiting(connection: psycopg.Connection) -> int:
    """Return how many others wait for a lock in this database."""
    return connection.execute("select count(*) from pg_locks where not granted").fetchone()[0]


def test_a_limit_that_cannot_be_read_stops_no_call_and_is_hard_again_when_it_can(database, tmp_path):
    """A gateway has just started when the database goes away: it has read no counter yet."""

    def read_recorded() -> int:
        return database.rows("select count(*) from usage_usagerecord where model = 'plain'")[0][0]

    with engine.running() as fake, installed(tmp_path / "var", DATABASE_URL=database.url) as installation:
        place = Place(installation, fake, installation.furnish(fake.url))
        installation.manage("setquota", "--tenant", "research", "--unit", "requests", "--per", "day", "--amount", "4")
        installation.serve()
        until(installation.answers)
        before = read_recorded()
        place.ids(4)
        assert place.chat().status_code == 429
        until(lambda: read_recorded() == before + 4)
        installation.process.terminate()
        installation.process.wait(30)

        installation.serve()
        until(installation.answers)
        assert place.chat().status_code == 429  # a restart forgives nothing
        installation.process.kill()
        installation.process.wait()
        installation.serve()
        until(installation.answers)
        database.stop()
        place.ids(4)
        database.start()
        until(lambda: place.chat().status_code == 429, 40)


def test_a_gateway_reports_its_machine_and_version(place):
    name = place.installation.env.get("MADOGUCHI_HOST", socket.gethostname())
    until(lambda: place.installation.read("select name, version from apiproxy_gatewaymachine") == [(name, VERSION)])


def test_a_locked_database_stops_no_call(place):
    before = place.ids(2)
    until(lambda: before == set(place.installation.usage()))
    with sqlite3.connect(place.installation.var / "madoguchi.sqlite3", isolation_level=None) as other:
        other.execute("begin exclusive")
        locked = place.ids(20)
        assert set(place.installation.usage()) == before
        other.execute("rollback")
    other.close()
    until(lambda: set(place.installation.usage()) == before | locked)


# --- the disk


def test_a_full_disk_refuses_new_work_loses_no_finished_answer_and_work_resumes_by_itself(place):
    """The process may not let files grow: the same error at the same calls as a full disk's, without being root."""
    pid = place.installation.process.pid
    done = {place.chat().headers["x-request-id"]}
    until(lambda: done == set(place.installation.usage()))
    script = [{"send": SSE}, {"events": 4}, {"wait": 1.0}, {"send": END}]
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    with place.http.stream("POST", "/v1/chat/completions", json=place.body(stream=True, script=script)) as under_way:
        pieces = under_way.iter_raw()
        next(pieces)
        # No file may grow beyond half a segment: what is reserved fills up, and there is no further one.
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (SEGMENT_BYTES // 2, unlimited[1]))
        with concurrent.futures.ThreadPoolExecutor(8) as callers:
            while (answers := list(callers.map(lambda _: place.chat(), range(100))))[-1].status_code == 200:
                done |= {answer.headers["x-request-id"] for answer in answers}
        done |= {answer.headers["x-request-id"] for answer in answers if answer.status_code == 200}
        assert b"".join(pieces).endswith(DONE.encode())
        done.add(under_way.headers["x-request-id"])

    for stream in (True, False):
        refused = place.chat(stream=stream)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "metering_unavailable"
        assert int(refused.headers["retry-after"]) > 0
    assert not place.installation.answers()  # and a load balancer hears it
    assert place.http.get("/v1/models").status_code == 200
    assert len(place.engine.seen()["requests"]) == len(done)

    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    until(place.installation.answers, 20)
    done |= place.ids(4)
    until(lambda: done == set(place.installation.usage()), 30)
    assert {row["status"] for row in place.installation.usage().values()} == {"finished"}


# --- the clock


def test_a_clock_that_jumps_leaves_durations_and_limits_sane(counter, research):
    Quota.objects.create(tenant=research, unit="requests", window="day", amount=3)
    counter.wait_for_catalogue()
    gateway = counter.application.gateway

    def jump(days: float) -> None:
        gateway.wall = lambda: time.time() + days * DAY

    script = [{"send": SSE}, {"events": 2}, {"wait": 0.5}, {"send": END}]
    with counter.stream(script=script) as response:
        pieces = response.iter_raw()
        next(pieces)
        jump(1)
        assert b"".join(pieces).endswith(DONE.encode())
    assert [counter.chat().status_code for _ in range(4)] == [200, 200, 200, 429]  # it is tomorrow
    for days in (1, 0, -1):
        jump(days)
        answer = counter.chat()
        # Set back, the clock forgives nothing of what was counted, and locks no key out beyond the day that it is.
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= DAY
    jump(2)
    assert counter.chat().status_code == 200
    for row in counter.usage(5):
        assert 0 <= (row.first_token_ms or 0) <= row.duration_ms < 5000
    assert UsageRecord.objects.filter(duration_ms__gte=400).count() == 1
