"""Who leaves the company or a group: with a real directory, a real gateway and the command that runs every hour."""

import time

import httpx2
import pytest
from django.core.management import CommandError, call_command

from modelregistry.models import TaskRun
from portal.accounts.models import DirectoryState, Tenant, User
from portal.audit.models import AuditEvent
from portal.keys.lifecycle import issue_key
from portal.notifications.models import Notice
from tests.apiproxy.conftest import counter, fake_engine, server_options  # noqa: F401 - fixtures
from tests.modelregistry.site import Site
from tests.ports import unused_port
from tests.waiting import until

# What the gateway promises of every change.
PROMISED = 2.0

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def company(counter, connect, door, directory):  # noqa: F811
    """Return the gateway, and some who stay, so that one who goes is plausible; alice is a local account here."""
    connect()
    for name in ("bob", "charlie", "olivia", "star*"):
        assert door.enter(name, directory.people[name].password)
    return counter


class Caller:
    """Provide a person with a key of a tenant."""

    def __init__(self, company, user: User, tenant: str) -> None:
        self.company = company
        self.user = user
        _, self.text = issue_key(tenant=Tenant.objects.get(slug=tenant), user=user, name="laptop")
        company.wait_for_catalogue()
        assert self.status() == 200

    def status(self) -> int:
        body = {"model": self.company.model.name, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"authorization": f"Bearer {self.text}"}
        return httpx2.post(f"{self.company.url}/v1/chat/completions", json=body, headers=headers).status_code

    def stopped_after(self) -> float:
        """Return seconds from now until a call is refused."""
        began = time.monotonic()
        until(lambda: self.status() == 401, 20)
        return time.monotonic() - began


def hired(company, door, newcomer, name: str, group: str, tenant: str) -> Caller:
    return Caller(company, door.enter(newcomer(name, group), f"password of {name}"), tenant)


def test_a_leaver_s_key_stops_within_two_seconds(company, door, directory, newcomer):
    leaver = hired(company, door, newcomer, "goto", "sales", "sales")
    stays = hired(company, door, newcomer, "wada", "sales", "sales")
    directory.dismiss("goto")
    call_command("syncdirectory")
    assert leaver.stopped_after() < PROMISED
    assert stays.status() == 200


def test_who_leaves_a_group_keeps_only_the_keys_of_the_others(company, door, directory, newcomer):
    moved = hired(company, door, newcomer, "wada", "sales", "sales")
    directory.join("wada", "research")
    call_command("syncdirectory")
    elsewhere = Caller(company, moved.user, "research")
    directory.leave("wada", "sales")
    call_command("syncdirectory")
    assert moved.stopped_after() < PROMISED
    assert elsewhere.status() == 200
    [notice] = Notice.objects.filter(user=moved.user, kind="membership-ended")
    assert notice.facts == {"tenant": "sales", "keys": 1}


def test_who_leaves_a_group_within_the_group_loses_what_that_gave(company, door, directory, newcomer):
    """research-lab is a member of research, which leads to the tenant."""
    nested = hired(company, door, newcomer, "kondo", "research-lab", "research")
    directory.leave("kondo", "research-lab")
    call_command("syncdirectory")
    assert nested.stopped_after() < PROMISED


def test_a_group_that_leaves_a_group_takes_its_people_along(company, door, directory, newcomer):
    """No person's own memberships change."""
    nested = hired(company, door, newcomer, "kondo", "research-lab", "research")
    with directory.without_group("research-lab", "research"):
        call_command("syncdirectory")
        assert nested.stopped_after() < PROMISED
    call_command("syncdirectory")
    until(lambda: nested.status() == 200, 20)


def test_while_the_directory_is_away_keys_go_on(company, door, connect, newcomer):
    caller = hired(company, door, newcomer, "goto", "sales", "sales")
    connect(LDAP_SERVER_URI=f"ldap://127.0.0.1:{unused_port()}")
    with pytest.raises(CommandError):
        call_command("syncdirectory")
    assert DirectoryState.objects.get().problem == "away"
    company.wait_for_catalogue()
    assert caller.status() == 200


def test_who_comes_back_has_their_key_again(company, door, directory, newcomer):
    """A group taken away by mistake: no key has to be made again."""
    caller = hired(company, door, newcomer, "wada", "sales", "sales")
    directory.leave("wada", "sales")
    call_command("syncdirectory")
    assert caller.stopped_after() < PROMISED
    directory.join("wada", "sales")
    call_command("syncdirectory")
    until(lambda: caller.status() == 200, 20)


@pytest.fixture
def host(tmp_path):
    site = Site(tmp_path / "host")
    site.var.mkdir()
    yield site
    site.close()


@pytest.mark.timeout(240)
def test_nobody_has_to_ask_for_it(company, door, directory, newcomer, host):
    """A supervisor follows the directory soon after it starts, and every hour."""
    leaver = hired(company, door, newcomer, "goto", "sales", "sales")
    directory.dismiss("goto")
    host.supervise(**directory.env())
    until(lambda: leaver.status() == 401, 90)
    run = until(lambda: TaskRun.objects.filter(name="syncdirectory", ended_at__isnull=False).first())
    assert (run.succeeded, run.claimed_by) == (True, "here")
    assert DirectoryState.objects.get().outcome["left"] == 1
    left = AuditEvent.objects.get(action="user.leave")
    assert (left.via, left.actor_name) == ("directory", "")
