"""Operators' sockets, through the server and the protocol classes that `up` uses, read by a real client."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.utils import timezone
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from modelregistry.models import Host, HostReport, LogSubscription, LogTail, Replica
from portal.operations.consumers import find_addition
from portal.operations.live import LiveOperationsFeed, OverviewReader
from portal.operations.queue_reports import withdraw_report, write_report
from portal.usage.live import LiveUsageFeed
from portal.web import websockets
from tests.installation import installed
from tests.pages import key_of, serve, use
from tests.portal.sockets import OPERATIONS, Database, is_refused, next_message, open_socket, serving, session_of
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)

GB = 10**9
QUEUE = "/ws/operations/queue/"


@pytest.fixture
def site(monkeypatch) -> Iterator[SimpleNamespace]:
    """Provide the portal on a port, with the `database` that operators' sockets read."""
    monkeypatch.setattr(websockets, "LOOK_AGAIN", 0.2)
    database = Database(OverviewReader())
    with serving(LiveOperationsFeed(lambda: database, poll=0.05, patience=5.0), LiveUsageFeed()) as site:
        site.database = database
        yield site


def report(host: Host) -> None:
    devices = [
        {
            "index": -1,
            "uuid": "",
            "name": "RAM",
            "kind": "ram",
            "total": 64 * GB,
            "used": 24 * GB,
            "fault": "",
            "free": 40 * GB,
        }
    ]
    HostReport.objects.create(host=host, devices=devices, at=timezone.now())


# --- who


@pytest.mark.parametrize("path", [OPERATIONS, QUEUE, "/ws/operations/replicas/1/log/", "/ws/elsewhere/"])
def test_only_operators_are_let_in(site, path, alice, bob, charlie):
    assert all(is_refused(site, somebody, path) for somebody in (alice, bob, charlie, None))


def test_g1_elsewhere_an_offered_socket_is_ignored(site, olivia):
    with pytest.raises(InvalidStatus) as caught:
        open_socket(site, olivia, "/v1/models")
    assert caught.value.response.status_code == 404


def test_an_operator_is_let_in_to_what_there_is(site, olivia):
    assert is_refused(site, olivia, "/ws/elsewhere/")
    with open_socket(site, olivia) as connection:
        assert next_message(connection)["type"] == "snapshot"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_another_site_s_page_is_not(site, olivia, origin):
    assert is_refused(site, olivia, origin=origin)


@pytest.mark.parametrize("end", ["demoted", "deactivated", "signed out", "password changed"])
def test_who_operates_no_more_is_cut(site, olivia, end):
    client = session_of(olivia)
    cookies = f"sessionid={client.cookies['sessionid'].value}"
    origin = f"http://127.0.0.1:{site.port}"
    with connect(
        f"ws://127.0.0.1:{site.port}{OPERATIONS}", origin=origin, additional_headers={"Cookie": cookies}
    ) as connection:
        assert next_message(connection)["type"] == "snapshot"
        if end == "signed out":
            client.logout()
        elif end == "password changed":
            olivia.set_password("another horse")
            olivia.save()
        else:
            setattr(olivia, "is_staff" if end == "demoted" else "is_active", False)
            olivia.save()
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(timeout=30)
        assert caught.value.rcvd.code == 4403


# --- the queue


def test_the_queue_is_sent_whenever_a_worker_reports_and_shown_as_old_while_the_database_is_away(site, olivia):
    nothing = {"calls": [], "models": [], "replicas": []}
    with open_socket(site, olivia, QUEUE) as connection:
        assert next_message(connection, "queue")["workers"] == []
        write_report("here/1", nothing, [])
        (worker,) = next_message(connection, "queue")["workers"]
        assert worker["worker"] == "here/1"
        site.database.away = True
        next_message(connection, "stale")
        site.database.away = False
        assert next_message(connection, "queue")["workers"]
        withdraw_report("here/1")
        until(lambda: not next_message(connection, "queue")["workers"])


# --- hosts and models


def test_a_snapshot_tells_all_there_is(site, olivia):
    model = serve("qwen")
    replica = model.replica_set.get()
    report(replica.host)
    Replica.objects.update(
        memory_bytes=9 * GB,
        predicted={"weights": 5 * GB, "cache": 2 * GB, "overhead": GB, "total": 8 * GB, "devices": 1},
    )
    with open_socket(site, olivia) as connection:
        message = next_message(connection)
    (host,), (seen,) = message["hosts"], message["models"]
    assert (seen["name"], seen["state"], seen["memory"], seen["predicted"]) == ("qwen", "ready", 9 * GB, 8 * GB)
    assert seen["replicas"][0]["host"] == "gpu-01"
    bar = host["devices"][0]
    assert [bar[part] for part in ("weights", "cache", "overhead", "others", "free")] == [
        part * GB for part in (5, 2, 2, 15, 40)
    ]


def test_a_change_tells_what_differs_and_nothing_else(site, olivia):
    serve("qwen")
    serve("gemma")
    with open_socket(site, olivia) as connection:
        assert len(next_message(connection)["models"]) == 2
        Replica.objects.filter(model__name="gemma").update(live={"running": 3, "waiting": 1, "tokens_per_second": 61.5})
        message = next_message(connection)
        assert (message["type"], message["hosts"]) == ("change", [])
        (seen,) = message["models"]
        assert (seen["name"], seen["running"], seen["waiting"], seen["tokens_per_second"]) == ("gemma", 3, 1, 61.5)


def test_what_is_gone_is_told(site, olivia):
    model = serve("qwen")
    number = model.pk
    with open_socket(site, olivia) as connection:
        next_message(connection)
        model.delete()
        gone = until(lambda: {kind: pks for kind, pks in next_message(connection)["gone"].items() if pks})
        assert gone == {"models": [number]}


def test_many_who_look_cost_one_read(site, olivia):
    with ExitStack() as stack:
        for connection in [stack.enter_context(open_socket(site, olivia)) for _ in range(8)]:
            next_message(connection)
        before, begun = site.database.reads, time.monotonic()
        until(lambda: site.database.reads >= before + 3)
        # 8 readers of their own would have read 8 times as often
        assert site.database.reads - before <= 3 + (time.monotonic() - begun) / 0.05
    until(lambda: len(site.server.server_state.connections) == 0)


def test_nothing_is_read_while_nobody_looks(site, olivia):
    with open_socket(site, olivia) as connection:
        next_message(connection)
    until(lambda: "live" not in " ".join(thread.name for thread in threading.enumerate()))
    reads = site.database.reads
    with open_socket(site, olivia) as connection:
        next_message(connection)
    assert site.database.reads > reads


def test_a_database_that_is_away_is_told_and_its_return_too(site, olivia):
    serve("qwen")
    with open_socket(site, olivia) as connection:
        next_message(connection)
        site.database.away = True
        assert next_message(connection)["type"] == "stale"
        reads = site.database.reads
        until(lambda: site.database.reads > reads + 3)
        site.database.away = False
        message = next_message(connection)  # stale was sent once
        assert (message["type"], message["models"][0]["name"]) == ("snapshot", "qwen")


def test_who_comes_while_it_is_away_is_told_so(site, olivia):
    with open_socket(site, olivia) as first:
        next_message(first)
        site.database.away = True
        next_message(first, "stale")
        with open_socket(site, olivia) as connection:
            assert next_message(connection)["type"] == "stale"


def test_a_quiet_socket_gets_a_heartbeat(site, olivia, monkeypatch):
    monkeypatch.setattr(websockets, "HEARTBEAT", 0.5)
    with open_socket(site, olivia) as connection:
        next_message(connection)
        assert next_message(connection)["type"] == "heartbeat"
        assert next_message(connection)["type"] == "heartbeat"


def test_what_a_client_sends_is_ignored(site, olivia):
    with open_socket(site, olivia) as connection:
        next_message(connection)
        for _ in range(100):
            connection.send("{" * 1000)
        serve("qwen")
        assert next_message(connection, "change")["models"][0]["name"] == "qwen"


# --- logs


def log_path(replica: Replica) -> str:
    return f"/ws/operations/replicas/{replica.pk}/log/"


def test_a_log_is_wished_for_while_somebody_looks(site, olivia):
    replica = serve().replica_set.get()
    with open_socket(site, olivia, log_path(replica)) as connection:
        assert next_message(connection) == {"version": 1, "type": "log", "at": None, "text": "", "append": False}
        subscription = until(lambda: LogSubscription.objects.filter(replica=replica).first())
        assert timedelta(seconds=10) < subscription.until - timezone.now() <= timedelta(seconds=15)
        tail = LogTail.objects.create(replica=replica, text=f"one\n{LINE}", at=timezone.now())
        assert next_message(connection)["text"] == f"one\n{LINE}"
        tail.text = f"{LINE}three\n"
        tail.save()
        message = next_message(connection)
        assert (message["text"], message["append"]) == ("three\n", True)


def test_the_wish_is_renewed(site, olivia):
    replica = serve().replica_set.get()
    with open_socket(site, olivia, log_path(replica)) as connection:
        next_message(connection)
        LogSubscription.objects.update(until=timezone.now() - timedelta(seconds=60))
        until(lambda: LogSubscription.objects.get().until > timezone.now())


def test_the_log_of_a_replica_that_goes_away_ends(site, olivia):
    replica = serve().replica_set.get()
    with open_socket(site, olivia, log_path(replica)) as connection:
        next_message(connection)
        replica.delete()
        assert next_message(connection)["type"] == "gone"
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=30)


def test_the_log_of_no_replica_is_gone_at_once(site, olivia):
    with open_socket(site, olivia, "/ws/operations/replicas/4711/log/") as connection:
        assert next_message(connection)["type"] == "gone"


def test_logs_and_state_are_read_together(site, olivia):
    replica = serve().replica_set.get()
    LogTail.objects.create(replica=replica, text="hello\n", at=timezone.now())
    with open_socket(site, olivia, log_path(replica)) as log, open_socket(site, olivia) as state:
        assert next_message(log)["text"] == "hello\n"
        assert next_message(state)["models"][0]["name"] == "qwen"  # not an empty one of before it looked


LINE = "INFO 09-01 12:00:00 engine.py:123] Avg generation throughput: 61.5 tokens/s, Running: 3 reqs" + "." * 120 + "\n"


@pytest.mark.parametrize(
    ("before", "after", "text", "append"),
    [
        ("", "a\n", "a\n", False),
        ("a\n", "a\nb\n", "b\n", True),
        ("a\n" + LINE, LINE + "c\n", "c\n", True),  # the first line left the end
        (LINE * 3, LINE * 2 + "b\n", "b\n", True),
        (LINE * 3, LINE * 3, "", True),
        ("b\n" + LINE, "a\n" + LINE + "c\n", "a\n" + LINE + "c\n", False),  # of another run: it only looks alike
        ("a\n", "x\ny\n", "x\ny\n", False),
        ("a\n", "", "", False),
        ("a" * 500, "a" * 400 + "b", "b", True),
    ],
)
def test_only_what_is_new_of_a_log_is_sent(before, after, text, append):
    assert find_addition(before, after) == {"text": text, "append": append}


# --- the server


def test_a_client_that_reads_nothing_is_cut(site, olivia, monkeypatch):
    monkeypatch.setattr("apiproxy.server.protocol.UNREAD_SECONDS", 0.5)
    replica = serve().replica_set.get()
    tail = LogTail.objects.create(replica=replica, text="", at=timezone.now())
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.connect(("127.0.0.1", site.port))
    with open_socket(site, olivia, log_path(replica), sock=small, max_queue=1, close_timeout=0):
        for number in range(1000):
            tail.text = f"{number}\n" + "x" * 200_000
            tail.save()
            reads = site.database.reads
            until(lambda before=reads: site.database.reads > before or not site.server.server_state.connections)
            if not site.server.server_state.connections:
                break
        assert not site.server.server_state.connections


def test_a_socket_outlives_the_time_that_heads_and_idle_connections_have(site, olivia, monkeypatch):
    monkeypatch.setattr("apiproxy.server.protocol.HEAD_SECONDS", 0.5)
    monkeypatch.setattr(site.server.config, "timeout_keep_alive", 0.5)
    with open_socket(site, olivia) as connection:
        next_message(connection)
        for sent in (b"GET / HTTP/1.1\r\n", b"GET /sign-in/ HTTP/1.1\r\nhost: localhost\r\n\r\n"):
            # A younger connection, with a head that never ends or idle after its answer, is ended by the server.
            with socket.create_connection(("127.0.0.1", site.port), 30) as other:
                other.sendall(sent)
                while other.recv(65_536):
                    pass
        serve("qwen")
        assert next_message(connection, "change")["models"][0]["name"] == "qwen"


def test_sockets_do_not_hold_up_the_end_of_the_server(site, olivia):
    with open_socket(site, olivia) as connection:
        next_message(connection)
        begun = time.monotonic()
        site.server.should_exit = True
        with pytest.raises(ConnectionClosed):
            list(connection)
        assert connection.close_code == 1012
        site.thread.join(30)
        assert time.monotonic() - begun < 5


# --- time to first token


def test_a_model_s_name_is_what_its_calls_are_recorded_under(site, olivia, alice, research):
    serve("qwen")
    record = use(key_of(alice, research))
    record.first_token_ms = 120
    record.save()
    with open_socket(site, olivia) as connection:
        assert next_message(connection)["models"][0]["first_token"] == {"requests": 1, "half": 0.12, "slow": 0.12}


# --- as operators start it

OPERATOR = """
from django.contrib.sessions.backends.db import SessionStore
from django.contrib import auth
from portal.accounts.models import User
olivia = User.objects.create(username="olivia", is_staff=True)
session = SessionStore()
session[auth.SESSION_KEY] = str(olivia.pk)
session[auth.BACKEND_SESSION_KEY] = "portal.accounts.backends.LocalBackend"
session[auth.HASH_SESSION_KEY] = olivia.get_session_auth_hash()
session.create()
print(session.session_key)
"""


def test_up_serves_sockets_and_ends_in_time(tmp_path):
    with installed(tmp_path / "var") as installation:
        session = installation.manage("shell", "--verbosity", "0", "--command", OPERATOR)
        installation.start()
        with connect(
            installation.url.replace("http", "ws") + OPERATIONS,
            origin=installation.url,
            additional_headers={"Cookie": f"sessionid={session}"},
        ) as connection:
            assert next_message(connection)["type"] == "snapshot"
            assert "permessage-deflate" not in connection.response.headers.get("Sec-WebSocket-Extensions", "")
            url = "http://10.0.0.5:8000"
            installation.manage("registermodel", "far", "--engine", "external", "--url", url)
            message = next_message(connection, "change")
            while not message["models"]:
                message = next_message(connection, "change")
            assert message["models"][0]["name"] == "far"
            assert installation.stop() == 0
            assert "running task(s)" not in installation.log  # what is said of sockets that do not end by themselves
            assert "Traceback" not in installation.log


def test_x_nobody_opens_live_pages_without_end(site, olivia, alice):
    """Each is looked after every few seconds: with 600 of one person every page of everybody took a second."""
    client = session_of(olivia)
    with ExitStack() as stack:
        for _ in range(websockets.MAX_SOCKETS):
            next_message(stack.enter_context(open_socket(site, None, client=client)))
        with pytest.raises(InvalidStatus):
            open_socket(site, None, client=client)
        with open_socket(site, alice, "/ws/usage/") as another:
            assert next_message(another)

    def opens_again() -> bool:
        try:
            with open_socket(site, None, client=client) as again:
                return bool(next_message(again))
        except InvalidStatus:
            return False

    until(opens_again)  # once the server has noticed that they are closed
