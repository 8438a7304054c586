"""A view that is sent a word it does not know changes nothing: it never takes it for "the other one"."""

import pytest
from django.conf import settings
from django.test import Client

from portal.accounts.models import User
from portal.audit.models import AuditEvent
from portal.quotas.models import Quota, QuotaRequest

pytestmark = pytest.mark.django_db

UNKNOWN = [{}, {"": "x"}, "", "Refuse", "REFUSE", "refuse ", "on,off", "ja\0", "yes\n", "0", "ｏｎ"]


@pytest.fixture
def places(research, alice, bob, olivia) -> dict[str, tuple[User, str]]:
    """Return who posts to which address, by the name of the value."""
    quota_request = {
        "tenant": research,
        "user": alice,
        "unit": "tokens",
        "window": "day",
        "amount": 2,
        "previous_amount": 1,
    }
    asked = QuotaRequest.objects.create(**quota_request, asked_by=alice)
    return {
        "verdict": (bob, f"/tenant/research/requests/{asked.pk}/"),
        "to": (olivia, "/tenant/research/switch/"),
        "language": (alice, "/language/"),
        "force": (olivia, "/operations/directory/sync/"),
    }


def standing() -> list[object]:
    rows = (User.objects.values("language", "is_active"), QuotaRequest.objects.values("state"), Quota.objects.values())
    return [*map(list, rows), list(AuditEvent.objects.values_list("pk"))]


@pytest.mark.parametrize("name", ["verdict", "to", "language", "force"])
@pytest.mark.parametrize("value", UNKNOWN, ids=repr)
def test_p1_an_unknown_value_is_400_and_changes_nothing(places, research, monkeypatch, name, value):
    monkeypatch.setattr(settings, "DIRECTORY", object())  # not to be asked
    who, address = places[name]
    client = Client()
    client.force_login(who)
    before = standing()
    form = value if isinstance(value, dict) else {name: value}
    if name == "force" and name not in form:
        form = {"force": "no"}  # without the word it is the other button, which follows only what is plausible
    assert client.post(address, {"amount": "2", "note": "n", **form}).status_code == 400
    research.refresh_from_db()
    assert research.is_active
    assert standing() == before


@pytest.mark.parametrize("language", ["en", "ja"])
def test_p1_the_page_of_a_400_is_in_words(places, language):
    client = Client(headers={"accept-language": language})
    client.force_login(places["to"][0])
    answer = client.post(places["to"][1], {"to": "sideways"})
    assert f'lang="{language}"' in answer.content.decode()
    assert 'href="/"' in answer.content.decode()
