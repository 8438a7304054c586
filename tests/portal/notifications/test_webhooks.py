"""Webhooks: what is posted to a chat program's address, and what happens when that is slow, broken or elsewhere."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest
from django.utils import timezone

from portal.audit.models import AuditEvent
from portal.notifications import webhooks
from portal.notifications.models import Webhook, WebhookMessage
from portal.web.notify import notify
from tests.html import has, one_of
from tests.portal.browsing import read, send
from tests.ports import unused_port

pytestmark = pytest.mark.django_db

FACTS = {"model": "<!channel> [x](http://evil)", "host": "gpu-01", "findings": []}
SECRET = "T0000-very-secret"


class Channel:
    """A chat program's address: keeps what is posted; `answer(handler)` writes the response."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.paths: list[str] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: respond(handler, 200, b"ok")
        channel = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                channel.paths.append(self.path)
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
        monkeypatch.setattr(webhooks, "SECONDS", 0.3)

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
        monkeypatch.setattr(webhooks, "METADATA", frozenset({ip_address("127.0.0.1")}))
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

    @pytest.mark.parametrize("host", ["10.0.0.7", "127.0.0.1", "[fd00::7]", "mattermost.corp.example"])
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
