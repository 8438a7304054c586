"""Webhooks: what is posted to a chat program's address, and what happens when that is slow, broken or elsewhere."""

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest
from django.db import OperationalError
from django.utils import timezone

from portal.audit.models import AuditEvent
from portal.notifications import posting, webhooks
from portal.notifications.models import Webhook, WebhookMessage
from portal.notifications.webhooks import shorten_url
from portal.web.notify import notify
from tests import nginx
from tests.html import has, one_of
from tests.portal.browsing import read, send
from tests.ports import unused_port
from tests.waiting import until

pytestmark = pytest.mark.django_db

FACTS = {"model": "<!channel> [x](http://evil)", "host": "gpu-01", "findings": []}
SECRET = "T0000-very-secret"


class Channel:
    """A chat program's address: keeps what is posted; `answer(handler)` writes the response."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.paths: list[str] = []
        self.hosts: list[str] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: respond(handler, 200, b"ok")
        channel = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                channel.paths.append(self.path)
                channel.hosts.append(self.headers["host"])
                channel.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                channel.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.released = threading.Event()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{SECRET}"

    def stop(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


def respond(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel()
    yield channel
    channel.stop()


@pytest.fixture
def hook(channel) -> Webhook:
    return Webhook.objects.create(name="ops", style="slack", url=channel.url, language="en", kinds=["canary-failed"])


def run(later: timedelta = timedelta()) -> int:
    return webhooks.send_due(timezone.now() + later)


def fail(*users, ref: str = "1") -> None:
    notify(users, "canary-failed", ref, path="/operations/", **FACTS)


class TestSending:
    def test_a_notice_for_operators_is_posted_once(self, hook, channel, olivia, carol):
        fail(olivia, carol)
        fail(olivia)
        assert (run(), run()) == (1, 0)
        [body] = channel.bodies
        assert body.keys() == {"text"}
        assert "<!channel>" not in body["text"]
        hook.refresh_from_db()
        assert hook.succeeded_at is not None

    @pytest.mark.parametrize(
        "name", ["@channel", "@all", "@here", "\uff20here", "[x](http://evil)", "[x]: http://evil"]
    )
    def test_a_name_calls_no_channel_and_hides_no_address(self, hook, channel, olivia, name):
        notify([olivia], "canary-failed", "1", path="/operations/", **{**FACTS, "model": name})
        run()
        [body] = channel.bodies
        assert name not in body["text"]
        assert name in body["text"].replace("\u200b", "")  # which has no width, so it reads as it was written

    def test_teams_gets_a_card_without_markdown(self, hook, channel, olivia, settings):
        settings.PUBLIC_URL = "https://llm.example"
        Webhook.objects.update(style="teams")
        fail(olivia)
        run()
        [attachment] = channel.bodies[0]["attachments"]
        assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
        assert {block["type"] for block in attachment["content"]["body"]} == {"RichTextBlock"}
        assert attachment["content"]["actions"][0]["url"] == "https://llm.example/operations/"

    def test_what_is_for_others_or_not_chosen_is_not_posted(self, hook, channel, alice, olivia):
        fail(alice)
        notify([olivia], "break-glass-used", "1", account="watch", address="", at=timezone.now())
        Webhook.objects.update(is_active=False)
        fail(olivia, ref="2")
        Webhook.objects.update(is_active=True)
        assert run() == 0
        assert channel.bodies == []

    def test_a_failure_is_tried_again_later_and_later(self, hook, channel, olivia):
        channel.answer = lambda handler: respond(handler, 500)
        fail(olivia)
        fail(olivia, ref="2")
        run()
        run()
        assert len(channel.bodies) == 1  # neither the second message nor the second run knocked again
        hook.refresh_from_db()
        assert (hook.fault, hook.status, hook.failures) == ("refused", 500, 1)
        run(timedelta(minutes=3))
        assert len(channel.bodies) == 2
        run(timedelta(minutes=5))  # the second pause is twice as long
        assert len(channel.bodies) == 2
        channel.answer = lambda handler: respond(handler, 200)
        assert run(timedelta(minutes=30)) == 2
        hook.refresh_from_db()
        assert (hook.failures, hook.retry_at) == (0, None)

    def test_what_is_old_is_dropped(self, hook, channel, olivia):
        fail(olivia)
        assert run(webhooks.KEPT + timedelta(hours=1)) == 0
        assert not WebhookMessage.objects.exists()

    def test_a_redirect_is_not_followed(self, hook, channel, olivia):
        channel.answer = lambda handler: respond(handler, 307, location="/elsewhere")
        fail(olivia)
        run()
        hook.refresh_from_db()
        assert (hook.fault, hook.status) == ("redirect", 307)
        assert channel.paths == [f"/{SECRET}"]

    @pytest.mark.parametrize("begins", [True, False], ids=["a slow body", "no answer"])
    def test_a_slow_server_is_not_waited_for(self, hook, channel, olivia, monkeypatch, begins):
        monkeypatch.setattr(posting, "SECONDS", 0.3)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            if begins:
                handler.send_response(200)
                handler.send_header("content-length", "1000")
                handler.end_headers()
            channel.released.wait(20)

        channel.answer = answer
        fail(olivia)
        run()
        hook.refresh_from_db()
        assert hook.fault == "timeout"

    def test_a_huge_answer_is_not_read(self, hook, channel, olivia):
        sent = []

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            try:
                for _ in range(4000):
                    handler.wfile.write(b"x" * 65536)
                    sent.append(1)
            except OSError:
                pass
            channel.released.set()

        channel.answer = answer
        fail(olivia)
        assert run() == 1
        assert channel.released.wait(20)
        assert len(sent) < 1000

    def test_a_name_that_leads_to_a_forbidden_address_gets_nothing(self, hook, channel, olivia, monkeypatch):
        monkeypatch.setattr(posting, "METADATA", frozenset({ip_address("127.0.0.1")}))
        Webhook.objects.update(url=channel.url.replace("127.0.0.1", "2130706433"))  # the same as one number
        fail(olivia)
        run()
        hook.refresh_from_db()
        assert (hook.fault, channel.bodies) == ("unreachable", [])

    def test_a_server_that_is_away_is_said(self, hook, olivia):
        Webhook.objects.update(url=f"http://127.0.0.1:{unused_port()}/{SECRET}")
        fail(olivia)
        run()
        hook.refresh_from_db()
        assert (hook.fault, hook.status) == ("unreachable", 0)

    def test_a_server_that_speaks_no_http_is_said(self, hook, olivia):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=lambda: listener.accept()[0].sendall(b"garbage\r\n\r\n"), daemon=True).start()
            Webhook.objects.update(url=f"http://127.0.0.1:{listener.getsockname()[1]}/{SECRET}")
            fail(olivia)
            run()
        hook.refresh_from_db()
        assert hook.fault in ("unreachable", "timeout")


class TestAddresses:
    """Names are looked up once, and what is reached is what was checked."""

    NAME = nginx.NAME

    @pytest.fixture
    def names(self, monkeypatch) -> Callable[[list[str]], list[str]]:
        """Let NAME lead to one list of addresses after the other, and return what is asked for."""
        real, asked = socket.getaddrinfo, []

        def choose(*answers: list[str]) -> list[str]:
            left = list(answers)

            def look_up(host, port, *args, **kwargs):
                if host not in (self.NAME, self.NAME.encode()):
                    return real(host, port, *args, **kwargs)
                asked.append(host)
                return [row for one in left.pop(0) for row in real(one, port, *args, **kwargs)]

            monkeypatch.setattr(socket, "getaddrinfo", look_up)
            return asked

        return choose

    def point(self, channel: Channel, scheme: str = "http") -> str:
        Webhook.objects.update(url=f"{scheme}://{self.NAME}:{channel.server.server_port}/{SECRET}")
        return f"{self.NAME}:{channel.server.server_port}"

    def test_a_name_that_leads_elsewhere_a_moment_later_is_reached_where_it_was_checked(
        self, hook, channel, olivia, names
    ):
        asked = names(["127.0.0.1"], ["169.254.169.254"])
        host = self.point(channel)
        fail(olivia)
        assert run() == 1
        assert (asked, channel.hosts) == ([self.NAME], [host])

    def test_a_name_with_one_forbidden_address_gets_nothing(self, hook, channel, olivia, names):
        names(["127.0.0.1", "169.254.169.254"])
        self.point(channel)
        fail(olivia)
        assert run() == 0
        hook.refresh_from_db()
        assert (hook.fault, channel.bodies) == ("unreachable", [])

    def test_a_name_whose_first_address_is_closed_is_reached_at_its_second(self, hook, channel, olivia, names):
        names(["127.0.0.2", "127.0.0.1"])  # the channel listens at the second one alone
        self.point(channel)
        fail(olivia)
        assert run() == 1

    @pytest.mark.parametrize("is_theirs", [True, False], ids=["its own certificate", "another's"])
    def test_the_certificate_is_that_of_the_name(self, hook, channel, olivia, names, tmp_path, monkeypatch, is_theirs):
        nginx.certify(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
        channel.server.socket = context.wrap_socket(channel.server.socket, server_side=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        if not is_theirs:
            monkeypatch.setattr(TestAddresses, "NAME", "other.example")
        names(["127.0.0.1"])
        self.point(channel, "https")
        fail(olivia)
        assert run() == int(is_theirs)

    def test_a_proxy_of_the_environment_is_used_also_for_names_that_it_alone_knows(
        self, hook, channel, olivia, monkeypatch
    ):
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{channel.server.server_port}")
        Webhook.objects.update(url=f"http://chat.invalid/{SECRET}")
        fail(olivia)
        assert run() == 1
        assert (channel.paths, channel.hosts) == ([f"http://chat.invalid/{SECRET}"], ["chat.invalid"])

    @pytest.mark.parametrize("scheme", ["socks5", "socks5h", "SOCKS4", "ftp"])
    def test_a_proxy_that_speaks_no_http_is_said_and_not_gone_past(
        self, hook, channel, olivia, monkeypatch, caplog, scheme
    ):
        monkeypatch.setenv("all_proxy", f"{scheme}://me:password@127.0.0.1:{channel.server.server_port}")
        monkeypatch.setenv("no_proxy", "localhost")
        fail(olivia)
        assert run() == 0
        hook.refresh_from_db()
        assert (hook.fault, channel.bodies) == ("unreachable", [])
        assert scheme.lower() in caplog.text
        assert "password" not in caplog.text

    def test_dns_that_is_silent_is_not_waited_for(self, hook, channel, olivia, monkeypatch):
        monkeypatch.setattr(posting, "SECONDS", 0.3)
        released = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: released.wait(30) and [])
        self.point(channel)
        fail(olivia)
        began = time.monotonic()
        run()
        assert time.monotonic() - began < 10
        released.set()
        hook.refresh_from_db()
        assert hook.fault == "timeout"


class TestNeighbours:
    """A webhook that is slow or silent delays no other one."""

    @pytest.fixture
    def other(self) -> Iterator[Channel]:
        channel = Channel()
        kinds = ["canary-failed"]
        Webhook.objects.create(name="zz", style="slack", url=channel.url, language="en", kinds=kinds)
        yield channel
        channel.stop()

    def test_all_are_posted_to_at_the_same_time(self, hook, channel, other, olivia):
        came = threading.Event()

        def wait_for_the_other(handler: BaseHTTPRequestHandler) -> None:
            respond(handler, 200 if came.wait(8) else 500)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            came.set()
            respond(handler, 200)

        channel.answer, other.answer = wait_for_the_other, answer
        fail(olivia)
        assert run() == 2

    def test_one_that_breaks_stops_no_other_one_and_is_raised(self, hook, channel, other, olivia, monkeypatch):
        real = posting.find_proxy

        def find_proxy(url):
            if url.port == channel.server.server_port:
                raise ImportError("broken")
            return real(url)

        monkeypatch.setattr(posting, "find_proxy", find_proxy)
        fail(olivia)
        with pytest.raises(ImportError):
            run()
        assert len(other.bodies) == 1
        [delivered] = WebhookMessage.objects.exclude(delivered_at=None)
        assert delivered.webhook.name == "zz"
        with pytest.raises(ImportError):
            webhooks.send_test(hook, timezone.now())

    def test_what_was_posted_is_marked_though_a_result_cannot_be_stored(
        self, hook, channel, other, olivia, monkeypatch, caplog
    ):
        real = webhooks.note_delivery

        def note_delivery(webhook, delivery, now):
            if webhook.pk == broken[0]:
                raise OperationalError("database is locked")
            real(webhook, delivery, now)

        monkeypatch.setattr(webhooks, "note_delivery", note_delivery)
        for broken in ([hook.pk], [Webhook.objects.get(name="zz").pk]):
            fail(olivia, ref=str(broken))
            assert run() == 2
            assert not WebhookMessage.objects.filter(delivered_at=None).exists()
        run()
        assert len(channel.bodies) == len(other.bodies) == 2
        assert "database is locked" in caplog.text

    def test_the_messages_of_one_that_is_slow_end_in_time_and_the_rest_is_sent_later(
        self, hook, channel, olivia, monkeypatch
    ):
        monkeypatch.setattr(posting, "SECONDS", 2.0)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            channel.released.wait(0.6)
            respond(handler, 200)

        channel.answer = answer
        for number in range(webhooks.MOST_MESSAGES):
            fail(olivia, ref=str(number))
        began = time.monotonic()
        first = run()
        assert 1 <= first < 5
        assert time.monotonic() - began < 6  # 20 messages would take 12 s
        hook.refresh_from_db()
        assert (hook.failures, hook.retry_at) == (0, None)
        channel.released.set()
        monkeypatch.setattr(posting, "SECONDS", 60.0)
        assert run() == webhooks.MOST_MESSAGES - first

    def test_a_webhook_that_is_deleted_meanwhile_stops_nothing(self, hook, channel, other, olivia):
        came, deleted = threading.Event(), threading.Event()

        def answer(handler: BaseHTTPRequestHandler) -> None:
            came.set()
            deleted.wait(8)
            respond(handler, 200)

        channel.answer = other.answer = answer
        fail(olivia)
        answers = webhooks.post_all

        def delete_first(parcels):
            for found in answers(parcels):
                Webhook.objects.filter(name="ops").delete()
                yield found

        deleted.set()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(webhooks, "post_all", delete_first)
            run()
        assert WebhookMessage.objects.exclude(delivered_at=None).count() == 1


class TestPages:
    FORM = {"name": "ops", "style": "slack", "language": "ja", "kinds": ["canary-failed"], "is_active": "on"}

    def test_the_address_is_a_secret_on_pages_in_logs_and_in_the_audit_log(self, as_olivia, channel, olivia, caplog):
        caplog.set_level(logging.DEBUG)
        channel.answer = lambda handler: respond(handler, 400)
        send(as_olivia, "/notices/webhooks/new/", **self.FORM, url=channel.url)
        send(as_olivia, f"/notices/webhooks/{Webhook.objects.get().pk}/test/")
        fail(olivia)
        run(timedelta(hours=1))
        pages = [
            read(as_olivia, path) for path in ("/notices/webhooks/", f"/notices/webhooks/{Webhook.objects.get().pk}/")
        ]
        assert SECRET not in "".join(pages)
        assert SECRET not in caplog.text
        assert SECRET not in json.dumps(list(AuditEvent.objects.values_list("before", "after")))

    def test_a_change_without_an_address_keeps_the_known_one(self, as_olivia, hook, channel):
        send(as_olivia, f"/notices/webhooks/{hook.pk}/", **{**self.FORM, "name": "new"}, url="")
        hook.refresh_from_db()
        assert (hook.name, hook.url) == ("new", channel.url)

    def test_the_form_says_of_the_address_what_is_so_when_adding_and_when_editing(self, as_olivia, hook):
        pages = [read(as_olivia, f"/notices/webhooks/{path}/") for path in ("new", hook.pk)]
        new, edit = (one_of(page, "#id_url_helptext").text for page in pages)
        assert new != edit

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("https://chat.example:8443/hooks/abc", "https://chat.example:8443/…abc"),
            ("https://me:secret@chat.example/hooks/abc", "https://chat.example/…abc"),
            ("http://[fd00::1]:80/hooks/abc", "http://[fd00::1]:80/…abc"),
        ],
    )
    def test_a_shortened_address_has_host_and_port_and_no_secret(self, url, shown):
        assert shorten_url(url) == shown

    @pytest.mark.parametrize(
        "url", ["", "ftp://x/y", "https://", "javascript:alert(1)", "http://a b/", "http://[::1", "x", "http://a\\@b/"]
    )
    def test_an_address_that_is_none_is_refused(self, as_olivia, url):
        response = as_olivia.post("/notices/webhooks/new/", {**self.FORM, "url": url})
        assert response.context["form"].has_error("url", "no-address" if url else "required")

    @pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.1.1]", "0.0.0.0", "224.0.0.1"])
    def test_addresses_where_machines_get_their_credentials_are_refused(self, as_olivia, host):
        response = as_olivia.post("/notices/webhooks/new/", {**self.FORM, "url": f"http://{host}/x"})
        assert response.context["form"].has_error("url", "forbidden-address")

    @pytest.mark.parametrize(
        "host",
        ["[64:ff9b::a9fe:a9fe]", "[::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[::ffff:100.100.100.200]", "168.63.129.16"],
    )
    def test_such_addresses_are_refused_within_others_as_well(self, as_olivia, host):
        response = as_olivia.post("/notices/webhooks/new/", {**self.FORM, "url": f"http://{host}/x"})
        assert response.context["form"].has_error("url", "forbidden-address")

    @pytest.mark.parametrize("host", ["10.0.0.7", "127.0.0.1", "[fd00::7]", "[::1]", "mattermost.corp.example"])
    def test_addresses_of_the_company_are_taken(self, as_olivia, host):
        send(as_olivia, "/notices/webhooks/new/", **self.FORM, url=f"http://{host}/x")
        assert Webhook.objects.exists()

    def test_a_test_says_whether_it_arrived(self, as_olivia, hook, channel):
        page = send(as_olivia, f"/notices/webhooks/{hook.pk}/test/")
        assert has(page, "[data-notice=webhook-sent]")
        channel.answer = lambda handler: respond(handler, 404)
        page = send(as_olivia, f"/notices/webhooks/{hook.pk}/test/")
        assert has(page, "[data-notice=webhook-failed]")
        assert one_of(page, "[data-webhook=ops]").all(".state.broken")

    @pytest.mark.django_db(transaction=True)
    def test_a_test_that_is_not_answered_holds_no_page_and_is_noted_when_it_ends(
        self, as_olivia, hook, channel, monkeypatch
    ):
        monkeypatch.setattr(webhooks, "PATIENCE", 0.1)
        channel.answer = lambda handler: respond(handler, 200 if channel.released.wait(8) else 500)
        page = send(as_olivia, f"/notices/webhooks/{hook.pk}/test/")
        assert has(page, "[data-notice=webhook-waits]")
        hook.refresh_from_db()
        assert (hook.succeeded_at, hook.failed_at) == (None, None)
        channel.released.set()
        until(lambda: Webhook.objects.get().succeeded_at, 10)
