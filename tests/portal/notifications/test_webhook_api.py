"""Webhooks in the API: for operators, and without their secret."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from portal.audit.models import AuditEvent
from portal.notifications import webhooks
from portal.notifications.models import Webhook

pytestmark = pytest.mark.django_db

SECRET = "T0000-very-secret"
BODY = {"name": "ops", "style": "teams", "url": f"https://chat.corp.example/{SECRET}"}


@pytest.fixture
def channel() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200 if self.path == "/fine" else 410)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_one_is_added_and_changed_and_its_address_is_never_read_again(call, olivia):
    answer = call(olivia)("POST", "webhooks/", BODY)
    assert answer.status_code == 201
    made = answer.json()
    assert (made["address"], made["kinds"]) == ("https://chat.corp.example/…ret", [*webhooks.OPERATOR_KINDS])
    changed = call(olivia)("PATCH", f"webhooks/{made['id']}/", {"kinds": ["canary-failed"], "is_active": False})
    assert (changed.json()["kinds"], changed.json()["is_active"]) == (["canary-failed"], False)
    row = Webhook.objects.get()
    assert (row.url, row.kinds) == (BODY["url"], ["canary-failed"])
    everything = [answer.content, changed.content, call(olivia)("GET", "webhooks/").content]
    everything += [str(list(AuditEvent.objects.values())).encode()]
    assert not [one for one in everything if SECRET.encode() in one]
    assert call(olivia)("DELETE", f"webhooks/{row.pk}/").status_code == 204
    assert not Webhook.objects.exists()


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"url": "http://169.254.169.254/latest"}, "url"),
        ({"url": "ftp://x/"}, "url"),
        ({"kinds": ["key-expiring"]}, "kinds"),
        ({"kinds": []}, "kinds"),
        ({"style": "irc"}, "style"),
        ({"name": "there"}, "name"),
        ({"status": 200}, "status"),
    ],
)
def test_what_is_wrong_is_refused_at_its_field(call, olivia, more, field):
    Webhook.objects.create(name="there", url="http://127.0.0.1:9/")
    answer = call(olivia)("POST", "webhooks/", {**BODY, **more})
    assert answer.status_code == 400
    assert {error["pointer"].split("/")[1] for error in answer.json()["errors"]} == {field}
    assert Webhook.objects.count() == 1


def test_there_are_only_so_many(call, olivia):
    names = (f"hook {number}" for number in range(webhooks.MOST_WEBHOOKS))
    Webhook.objects.bulk_create([Webhook(name=name, url="http://127.0.0.1:9/") for name in names])
    assert call(olivia)("POST", "webhooks/", BODY).status_code == 409
    assert Webhook.objects.count() == webhooks.MOST_WEBHOOKS


@pytest.mark.parametrize(("path", "result", "status"), [("fine", "accepted", 0), ("gone", "failed", 410)])
def test_a_test_says_what_came_of_it(call, olivia, channel, path, result, status):
    row = Webhook.objects.create(name="ops", url=f"http://127.0.0.1:{channel.server_port}/{path}")
    found = call(olivia)("POST", f"webhooks/{row.pk}/test/").json()
    assert (found["result"], found["webhook"]["status"]) == (result, status)
