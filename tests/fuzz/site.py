"""The Madoguchi that is fuzzed: `up` with a gateway, a portal and a fake engine, and what can be seen of it."""

import contextlib
import json
import re
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests import engine
from tests.installation import Installation, installed
from tests.waiting import until

PLENTY = 10**11  # tokens a day: never reached, always counted
SETUP = """
from django.test import Client
from modelregistry.models import Host, Replica, ServedModel
from portal.accounts.models import Membership, Tenant, User
model = ServedModel.objects.create(name="vectors", engine="external", task="embedding", url="{url}")
Replica.objects.create(model=model, host=Host.objects.get(name="elsewhere"), state="ready", url="{url}")
for name, operator in (("alice", False), ("olivia", True)):
    user = User.objects.create_user(name, "", "correct horse", is_staff=operator, is_superuser=operator)
    Membership.objects.create(user=user, tenant=Tenant.objects.get())
    browser = Client()
    browser.force_login(user, "portal.accounts.backends.LocalBackend")
    browser.get("/keys/new/", HTTP_HOST="localhost")
    print("; ".join(f"{{name}}={{morsel.value}}" for name, morsel in browser.cookies.items()))
"""


@dataclass
class Site:
    """`cookies`: of signed-in people. `finished`: ids of calls whose whole answers came."""

    installation: Installation
    key: str
    cookies: list[str]
    addresses: list[str]
    client: httpx2.Client
    finished: set[str] = field(default_factory=set)
    resident: float = 0.0  # MB, of the gateway when it had warmed up
    read: int = 0  # bytes of the log
    own: int = 0  # tokens that the call of `reserved` reserves itself

    @property
    def port(self) -> int:
        return self.installation.port

    def metric(self, name: str) -> float:
        """Return the sum of a metric's rows."""
        text = self.client.get("/metrics").text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    def memory(self) -> float:
        """Resident memory of the gateway in MB."""
        status = Path(f"/proc/{self.installation.pid_of('apiproxy.server.gateway_worker')}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found
        return int(found[1]) / 1024

    def drop(self, lines: bytes) -> None:
        """Leave a spool as a dead gateway would have."""
        spool = self.installation.var / "spool"
        temporary = spool / f"{uuid.uuid4().hex[:12]}.new"
        temporary.write_bytes(lines)
        temporary.rename(spool / f"{temporary.stem}-000000.jsonl")

    def send(self, data: bytes) -> bytes:
        """Return what is answered to these bytes and nothing more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := connection.recv(65536):
                    answer += piece
            return answer

    def quiet(self) -> None:
        """Fail if anything of ours has fallen since the last look, by the log."""
        with (self.installation.var / "up.log").open("rb") as log:
            log.seek(self.read)
            lines = log.read().decode(errors="replace")
            self.read = log.tell()
        before, fault, after = lines.partition("Traceback")
        assert not fault, before[-1000:] + fault + after[:4000]

    def settled(self) -> None:
        """Fail unless nothing is left of what was asked so far: no call, no reservation, no answer without its row."""
        self.quiet()
        odd = self.installation.read("select * from feedback_feedback where abs(score) <> 1 or length(comment) > 1000")
        assert not odd, odd
        until(lambda: self.metric("madoguchi_in_flight") == 0, 30)
        ready = self.client.get("/readyz")
        assert (ready.status_code, ready.json().get("tasks_down", [])) == (200, []), ready.text
        finished, self.finished = self.finished, set()
        with contextlib.suppress(AssertionError):
            until(lambda: not self.unrecorded(finished), 30)
        assert not self.unrecorded(finished), self.unrecorded(finished)
        with contextlib.suppress(AssertionError):
            until(lambda: self.reserved() == 0, 30)
        assert (left := self.reserved()) == 0, f"{left} tokens stay reserved"

    def reserved(self) -> int:
        """Return tokens that count as used although no row has them.

        A call is made to learn it; it uses twelve.
        """
        body = {"model": "plain", "messages": []}
        answer = self.client.post("/v1/chat/completions", headers=self.authorization, json=body)
        assert answer.status_code == 200, answer.text
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        request_id = answer.headers["x-request-id"]
        with contextlib.suppress(AssertionError):
            until(lambda: not self.unrecorded({request_id}), 30)
        assert not self.unrecorded({request_id}), request_id
        # Not what `drop` brought, of long ago: of a dead gateway's calls no counter here knows.
        ((used,),) = self.installation.read(
            "select sum(prompt_tokens + completion_tokens) from usage_usagerecord"
            f" where request_id like 'req_%' and request_id not like 'req_0000%' and request_id <> '{request_id}'"
            " and started_at > datetime('now', '-1 day')"
        )
        return PLENTY - left - (used or 0) - self.own

    def unrecorded(self, ids: set[str]) -> set[str]:
        """Return those of these calls that have no row."""
        marks = ",".join(f"'{request_id}'" for request_id in ids)
        rows = self.installation.read(f"select request_id from usage_usagerecord where request_id in ({marks})")
        assert len(rows) == len(set(rows))
        return ids - {request_id for (request_id,) in rows}

    def key_lines(self) -> list[str]:
        return [f"{name}: {value}" for name, value in self.authorization.items()]

    @property
    def authorization(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


@contextlib.contextmanager
def site(var: Path) -> Iterator[Site]:
    with engine.running() as fake, installed(var) as installation:
        key = installation.furnish(fake.url)
        out = installation.manage("shell", "--verbosity", "0", "--command", SETUP.format(url=fake.url))
        addresses = installation.manage("shell", "--verbosity", "0", "--command", ADDRESSES)
        tokens = ("--unit", "tokens", "--per", "day", "--amount", str(PLENTY))
        installation.manage("setquota", "--tenant", "research", *tokens)
        installation.start()
        with httpx2.Client(base_url=installation.url, timeout=60) as client:
            found = Site(installation, key, out.splitlines(), json.loads(addresses), client)
            found.own = found.reserved()
            try:
                yield found
            except BaseException as error:
                error.add_note(f"the log ends:\n{installation.log[-5000:]}")
                raise
        found.quiet()


ADDRESSES = """
import json
from tests.walk import addresses
print(json.dumps([path for path in addresses() if not path.startswith("sign-out")]))
"""
