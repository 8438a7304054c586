"""What is asked about before a quota is saved."""

import pytest
from django.core.management import call_command

from portal.quotas import administration
from portal.quotas.administration import QuotaKind, QuotaTarget
from portal.quotas.cautions import find_cautions
from portal.quotas.models import Quota
from tests.html import all_of
from tests.pages import serve

pytestmark = pytest.mark.django_db

DAILY = QuotaKind(unit="tokens", window="day")
MONTHLY = QuotaKind(unit="tokens", window="month")


def code_of(to: QuotaTarget, what: QuotaKind, amount: int) -> str:
    """Return the code of the only caution; "": there is none."""
    codes = [one.code for one in find_cautions(to, what, amount)]
    assert len(codes) <= 1
    return codes[0] if codes else ""


def test_0_is_asked_about_where_it_blocks_more_than_one_person(alice, research):
    assert code_of(QuotaTarget(tenant=research), DAILY, 0) == "blocks-all"
    assert code_of(QuotaTarget(tenant=research, default_for="member"), DAILY, 0) == "blocks-all"
    assert code_of(QuotaTarget(default_for="tenant"), DAILY, 0) == "blocks-all"
    assert code_of(QuotaTarget(tenant=research, user=alice), DAILY, 0) == ""


def test_a_day_cannot_have_more_than_its_month(olivia, research):
    to = QuotaTarget(tenant=research)
    administration.set_quota(olivia, to, MONTHLY, 12_000_000)
    assert code_of(to, DAILY, 12_000_001) == "never-reached"
    assert code_of(to, DAILY, 12_000_000) == ""
    assert code_of(to, QuotaKind(unit="requests", window="day"), 12_000_001) == "", "other units count other things"


def test_a_month_may_have_more_than_a_day(olivia, research):
    to = QuotaTarget(tenant=research)
    administration.set_quota(olivia, to, DAILY, 1000)
    assert code_of(to, MONTHLY, 30_000) == ""


def test_one_model_has_no_more_than_all_and_all_may_have_more_than_one(olivia, research):
    to, model = QuotaTarget(tenant=research), serve("qwen")
    of_model = QuotaKind(unit="tokens", window="day", model=model)
    administration.set_quota(olivia, to, DAILY, 1000)
    assert code_of(to, of_model, 1001) == "never-reached"
    administration.set_quota(olivia, to, of_model, 10)
    assert code_of(to, DAILY, 2000) == ""


def test_a_member_and_a_default_have_no_more_than_the_tenant(olivia, alice, research):
    administration.set_quota(olivia, QuotaTarget(tenant=research), MONTHLY, 1000)
    for to in (QuotaTarget(tenant=research, user=alice), QuotaTarget(tenant=research, default_for="member")):
        assert code_of(to, DAILY, 1001) == "never-reached"
        assert code_of(to, DAILY, 999) == ""


class TestOfTwoCautions:
    """Each door names both."""

    BOTH = ("never-reached", "leap")
    BODY = {"tenant": "research", "unit": "tokens", "window": "day", "amount": 60_000}

    @pytest.fixture(autouse=True)
    def quotas(self, olivia, research) -> None:
        administration.set_quota(olivia, QuotaTarget(tenant=research), MONTHLY, 50_000)
        administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 10)

    def test_the_page_asks_about_both(self, client, olivia):
        client.force_login(olivia, "portal.accounts.backends.LocalBackend")
        asked = client.post(
            "/tenant/research/quotas/give/?of=tenant", {"kind": "tokens/day", "model": "", "amount": "60000"}
        )
        assert [one["data-caution"] for one in all_of(asked, "#caution [data-caution]")] == [*self.BOTH]

    def test_the_api_names_both(self, client, olivia):
        client.force_login(olivia, "portal.accounts.backends.LocalBackend")
        saved = client.post("/api/v1/quotas/", self.BODY, content_type="application/json")
        assert (saved.status_code, saved.json()["cautions"]) == (201, [*self.BOTH])

    def test_the_command_warns_of_both(self, capsys):
        call_command("setquota", tenant="research", unit="tokens", per="day", amount=60_000)
        warnings = capsys.readouterr().err.splitlines()
        assert [line.partition("(")[2].partition(")")[0] for line in warnings] == [*self.BOTH]


def test_a_hundred_times_as_much_as_before_is_asked_about(olivia, research):
    to = QuotaTarget(tenant=research)
    administration.set_quota(olivia, to, DAILY, 50)
    assert code_of(to, DAILY, 4_999) == ""
    assert code_of(to, DAILY, 5_000) == "leap"


def test_the_command_obeys_and_warns(research, capsys):
    call_command("setquota", tenant="research", unit="tokens", per="day", amount=0)
    assert "blocks-all" in capsys.readouterr().err
    assert Quota.objects.get().amount == 0


def test_the_api_obeys_and_names_its_cautions(olivia, client, research):
    client.force_login(olivia, "portal.accounts.backends.LocalBackend")
    body = {"tenant": "research", "unit": "tokens", "window": "day", "amount": 0}
    saved = client.post("/api/v1/quotas/", body, content_type="application/json")
    assert (saved.status_code, saved.json()["cautions"]) == (201, ["blocks-all"])
    again = client.post("/api/v1/quotas/", body, content_type="application/json")
    assert again.json()["cautions"] == [], "nothing changed"
