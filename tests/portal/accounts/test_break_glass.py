"""The one account for emergencies: manage.py breakglass, signing in with it, and who is notified."""

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction

from portal.accounts.break_glass import BreakGlassRefused
from portal.accounts.models import User
from portal.audit.models import AuditEvent
from portal.notifications.models import Notice
from tests.html import has
from tests.ports import unused_port

pytestmark = pytest.mark.django_db


def breakglass(capsys, *arguments: str) -> str:
    call_command("breakglass", *arguments)
    return capsys.readouterr().out.strip()


def refusal(*arguments: str) -> str:
    """Return the code of the error with which the command refuses."""
    with pytest.raises(CommandError) as caught:
        call_command("breakglass", *arguments)
    assert isinstance(caught.value.__cause__, BreakGlassRefused)
    return caught.value.__cause__.code


def test_it_is_an_operator_whose_password_is_told_once(door, capsys):
    password = breakglass(capsys, "red-button")
    user = door.enter("red-button", password)
    assert (user.is_staff, user.is_superuser, user.is_break_glass, user.directory_id) == (True, True, True, None)
    assert door.client.get("/operations/").status_code == 200
    assert password not in str(list(AuditEvent.objects.values()))


def test_it_works_while_the_directory_is_away(door, capsys, connect):
    password = breakglass(capsys, "red-button")
    connect(LDAP_SERVER_URI=f"ldap://127.0.0.1:{unused_port()}")
    assert door.enter("red-button", password)


def test_it_works_while_the_directory_answers(door, capsys, connect):
    password = breakglass(capsys, "red-button")
    connect()
    assert door.enter("red-button", password)


def test_it_survives_that_the_directory_is_followed(everybody_of, door, capsys):
    password = breakglass(capsys, "red-button")
    call_command("syncdirectory")
    assert door.enter("red-button", password)


@pytest.fixture
def everybody_of(connect, door, directory) -> None:
    connect()
    assert door.enter("alice", directory.people["alice"].password)


def test_a_new_password_ends_the_old_one(door, capsys):
    old, new = breakglass(capsys, "red-button"), breakglass(capsys, "Red-Button")
    assert door.enter("red-button", old) is None
    assert door.enter("red-button", new)
    assert User.objects.count() == 1


def test_there_is_only_one(capsys, olivia):
    breakglass(capsys, "red-button")
    assert refusal("blue-button") == "exists"
    with pytest.raises(IntegrityError), transaction.atomic():
        User.objects.create(username="second", is_break_glass=True)


def test_nobody_s_own_account_becomes_it(olivia):
    assert refusal("OLIVIA") == "name-taken"


def test_it_can_be_ended_and_made_anew(door, capsys):
    password = breakglass(capsys, "red-button")
    breakglass(capsys, "red-button", "--end")
    assert door.enter("red-button", password) is None
    assert not User.objects.filter(is_staff=True).exists()
    assert door.enter("blue-button", breakglass(capsys, "blue-button"))
    assert refusal("red-button", "--end") == "another"


def test_every_use_is_audited_and_told_to_all_operators(door, capsys, olivia, alice):
    User.objects.create_user("gone", is_staff=True, is_active=False)
    password = breakglass(capsys, "red-button")
    door.enter("red-button", password)
    door.enter("red-button", password)
    told = Notice.objects.filter(kind="break-glass-used")
    assert [notice.user.username for notice in told] == ["olivia", "olivia"]
    assert (told[0].facts["account"], told[0].facts["address"]) == ("red-button", "10.0.0.7")
    events = AuditEvent.objects.filter(action="session.break-glass")
    assert [(event.actor_name, event.address) for event in events] == [("red-button", "10.0.0.7")] * 2


def test_who_uses_it_is_told_so(door, capsys):
    door.enter("red-button", breakglass(capsys, "red-button"))
    assert has(door.client.get("/"), ".notice.warning[data-notice=break-glass]")


def test_other_sign_ins_tell_nobody(door, olivia, alice):
    door.enter("alice", "correct horse")
    assert not Notice.objects.exists()


def test_guessing_it_is_throttled(door, capsys):
    password = breakglass(capsys, "red-button")
    for _ in range(5):
        assert door.enter("red-button", "a guess") is None
    assert door.enter("red-button", password) is None
    assert door.response.status_code == 429
