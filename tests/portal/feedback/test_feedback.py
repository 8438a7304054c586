"""Feedback on answers: whose requests one may judge, how it is counted, who reads it, and the weekly digest."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone

from modelregistry.models import Alias
from portal.accounts.models import Membership
from portal.feedback import digest, recording, reports
from portal.feedback.models import MAX_COMMENT, Feedback
from portal.feedback.recording import RECENT, WAIT, FeedbackRefused, GivenFeedback, join_waiting, record_feedback
from portal.notifications.models import Notice
from portal.usage import records
from tests.html import all_of, has, one_of
from tests.pages import call, key_of, serve, service_key_of, use
from tests.portal.browsing import client_of, read
from tests.use_cases import text_content, use_case

pytestmark = pytest.mark.django_db


@pytest.fixture
def request_id(alice, research) -> str:
    return use(key_of(alice, research)).request_id


def give(user, request_id: str, score: int = 1, **more) -> bool:
    given = GivenFeedback(request_id=request_id, score=score, **more)
    tenant = user.memberships.get().tenant_id
    return record_feedback(given, user_id=user.pk, tenant_id=tenant, now=timezone.now())


def give_as(user, request_id: str, **more) -> bool:
    """Give feedback as on a page, about a request of any of the person's tenants."""
    given = GivenFeedback(request_id=request_id, score=1, **more)
    return record_feedback(given, user_id=user.pk, tenant_id=None, now=timezone.now())


def test_a_second_thumb_replaces_the_first(alice, request_id):
    assert give(alice, request_id, 1)
    assert give(alice, request_id, -1, comment=" too long ")
    row = Feedback.objects.get()
    assert (row.score, row.comment, row.model, row.tenant.slug) == (-1, "too long", "qwen", "research")


def test_requests_of_others_do_not_exist(bob, charlie, request_id):
    for stranger in (bob, charlie):
        with pytest.raises(FeedbackRefused) as refused:
            give(stranger, request_id)
        assert refused.value.code == "unknown"
    assert not Feedback.objects.exists()


def test_a_service_judges_what_services_of_its_tenant_asked(research, sales, alice, request_id):
    own = use(service_key_of(research)).request_id
    given = GivenFeedback(request_id=own, score=1)
    assert record_feedback(given, user_id=None, tenant_id=research.pk, now=timezone.now())
    for wrong, tenant in ((own, sales.pk), (request_id, research.pk)):
        with pytest.raises(FeedbackRefused):
            record_feedback(
                GivenFeedback(request_id=wrong, score=1), user_id=None, tenant_id=tenant, now=timezone.now()
            )


def test_a_request_of_long_ago_is_refused(alice, research):
    old = use(key_of(alice, research), at=timezone.now() - RECENT - timedelta(hours=1)).request_id
    with pytest.raises(FeedbackRefused) as refused:
        give(alice, old)
    assert refused.value.code == "old"


@pytest.mark.parametrize(
    "wrong",
    [{"score": 0}, {"score": 5}, {"comment": "x" * (MAX_COMMENT + 1)}, {"comment": "\0"}, {"request_id": "é"}],
)
def test_what_no_client_should_send_is_refused(alice, request_id, wrong):
    with pytest.raises(FeedbackRefused) as refused:
        give(alice, **{"request_id": request_id, **wrong})
    assert refused.value.code == "invalid"


def test_a_flood_is_refused_but_a_change_is_not(alice, research, monkeypatch):
    monkeypatch.setattr(recording, "MOST_IN_AN_HOUR", 2)
    key = key_of(alice, research)
    first, second, third = (use(key).request_id for _ in range(3))
    give(alice, first)
    give(alice, second)
    with pytest.raises(FeedbackRefused) as refused:
        give(alice, third)
    assert refused.value.code == "many"
    give(alice, first, -1)
    assert Feedback.objects.count() == 2


def test_feedback_before_its_usage_waits_and_is_joined(alice, research):
    row = call(key_of(alice, research))
    assert not give(alice, row["request_id"], comment="early")
    assert not reports.feedback_of(None, timezone.now() - timedelta(days=1)).exists()
    records.record_usage([row])
    assert join_waiting() == 1
    assert reports.feedback_of(None, timezone.now() - timedelta(days=1)).get().model == "qwen"


def test_ids_that_no_request_ever_had_keep_no_other_waiting(alice, bob, research, monkeypatch):
    monkeypatch.setattr(recording, "AT_ONCE", 2)
    for number in range(3):
        give(bob, f"req_never{number}")
    row = call(key_of(alice, research))
    give(alice, row["request_id"])
    records.record_usage([row])
    assert join_waiting() == 1


@pytest.mark.parametrize("is_member", [True, False])
def test_a_use_case_is_named_to_its_readers_alone(alice, bob, charlie, olivia, research, sales, request_id, is_member):
    """Whether a stranger sends its id, or a member of both tenants tries it with the other one's key."""
    case = use_case(charlie, sales, text_content(title="Secret plan"), publisher=olivia if is_member else None)
    if is_member:
        Membership.objects.create(user=alice, tenant=sales)
    give_as(alice, request_id, use_case=case.pk, use_case_version=1, comment="fine")
    assert (Feedback.objects.get().use_case == case) == is_member
    page = read(client_of(bob), "/feedback/")
    assert "Secret plan" not in page
    assert not has(page, "#by-use-case tbody tr")
    assert has(page, "#comments li")
    assert has(read(client_of(olivia), "/feedback/"), "#comments a") == is_member


def test_a_service_names_only_use_cases_of_its_tenant(research, sales, bob, charlie, alice):
    own, other = use_case(alice, research, publisher=bob), use_case(charlie, sales)
    for case in (own, other):
        given = GivenFeedback(
            request_id=use(service_key_of(research)).request_id, score=1, use_case=case.pk, use_case_version=1
        )
        record_feedback(given, user_id=None, tenant_id=research.pk, now=timezone.now())
    assert set(Feedback.objects.values_list("use_case", flat=True)) == {own.pk, None}


def test_what_waits_for_anothers_request_or_too_long_is_deleted(alice, bob, research):
    row = call(key_of(alice, research))
    give(bob, row["request_id"])
    records.record_usage([row])
    give(alice, "req_never")
    assert join_waiting() == 0
    assert [one.request_id for one in Feedback.objects.all()] == ["req_never"]
    join_waiting(timezone.now() + WAIT + timedelta(minutes=1))
    assert not Feedback.objects.exists()


def test_an_alias_and_a_use_case_count_only_if_they_are_right(alice, bob, research, request_id):
    Alias.objects.create(name="fast", model=serve("qwen"))
    case = use_case(alice, research, publisher=bob)
    give(alice, request_id, model="fast", use_case=case.pk, use_case_version=1)
    row = Feedback.objects.get()
    assert (row.called_as, row.use_case, row.use_case_version) == ("fast", case, 1)
    give(alice, request_id, model="other", use_case=case.pk, use_case_version=7)
    row.refresh_from_db()
    assert (row.called_as, row.use_case, row.use_case_version) == ("", None, None)


def test_the_playground_leaves_a_thumb_and_a_sentence(as_alice, as_charlie, request_id):
    body = {"request_id": request_id, "score": "-1", "comment": "wrong"}
    assert as_alice.post("/feedback/give/", body).json() == {"status": "recorded"}
    assert as_charlie.post("/feedback/give/", body).status_code == 404
    for wrong in ({"score": "2"}, {"request_id": ""}, {"comment": "x" * 1001}, {"use_case": "x"}):
        assert as_alice.post("/feedback/give/", {**body, **wrong}).status_code == 400
    assert Feedback.objects.get().comment == "wrong"


@pytest.fixture
def as_charlie(charlie, client):
    client.force_login(charlie, "portal.accounts.backends.LocalBackend")
    return client


@pytest.fixture
def judged(alice, charlie, bob, research, sales):
    """Have Alice find three of four answers good, and Charlie of another tenant one bad."""
    case = use_case(alice, research, publisher=bob)
    key = key_of(alice, research)
    for score in (1, 1, 1):
        give(alice, use(key).request_id, score, use_case=case.pk, use_case_version=1)
    give(alice, use(key).request_id, -1, comment="cut off")
    give(charlie, use(key_of(charlie, sales), model="small").request_id, -1, comment="slow <b>")
    return case


def test_operators_read_all_and_champions_their_tenants(as_olivia, as_bob, as_alice, alice, judged):
    page = read(as_olivia, "/feedback/")
    assert one_of(page, "[data-count]")["data-count"] == "5"
    assert {row["data-row"] for row in all_of(page, "#by-model tbody tr")} == {"qwen", "small"}
    page = read(as_bob, "/feedback/")
    assert one_of(page, "[data-share]")["data-share"] == "0.75"
    assert [row["data-row"] for row in all_of(page, "#by-model tbody tr")] == ["qwen"]
    assert [row["data-row"] for row in all_of(page, "#by-use-case tbody tr")] == [str(judged.pk)]
    assert "cut off" in page
    assert "slow" not in page
    assert as_alice.get("/feedback/").status_code == 404
    Membership.objects.filter(user=alice).update(is_champion=True)
    assert "cut off" in read(as_alice, "/feedback/")
    assert as_alice.get("/feedback/?of=sales").status_code == 404


def test_use_cases_have_their_titles_in_the_language_of_the_reader(as_olivia, alice, bob, research):
    titles = {"ja": "メールの返信", "en": "Reply to a mail"}
    texts = [text_content(language, title=title) for language, title in titles.items()]
    case = use_case(alice, research, *texts, publisher=bob)
    give(alice, use(key_of(alice, research)).request_id, -1, comment="short", use_case=case.pk, use_case_version=1)
    for language, title in titles.items():
        page = as_olivia.get("/feedback/", headers={"accept-language": language})
        assert one_of(page, "#by-use-case .row-link").text == title
        assert one_of(page, "#comments a").text == title


def test_odd_periods_and_pages_show_the_report(as_olivia, judged):
    for query in (
        "days=x",
        "days=7",
        "page=99",
        "of=",
        "from=x&to=y",
        "from=2026-11-20",
        "from=0001-01-01&to=9999-12-31",
    ):
        assert has(read(as_olivia, f"/feedback/?{query}"), "#by-model")


def test_any_days_can_be_chosen_each_whole_in_the_reader_s_zone(as_olivia, judged):
    first, *_, last = Feedback.objects.order_by("pk")
    Feedback.objects.update(at=datetime(2026, 9, 15, 12, tzinfo=ZoneInfo("Asia/Tokyo")))
    Feedback.objects.filter(pk=first.pk).update(at=datetime(2026, 9, 10, 0, 0, tzinfo=ZoneInfo("Asia/Tokyo")))
    Feedback.objects.filter(pk=last.pk).update(at=datetime(2026, 9, 12, 23, 59, tzinfo=ZoneInfo("Asia/Tokyo")))
    for days, count in [("from=2026-09-10&to=2026-09-12", 2), ("from=2026-09-12&to=2026-09-11", 1)]:
        page = read(as_olivia, f"/feedback/?{days}")
        assert one_of(page, "[data-count]")["data-count"] == str(count)
        assert not has(page, "nav.choice [aria-current]")
    assert has(read(as_olivia, "/feedback/?days=90"), "#days [name=from]")


MONDAY = datetime(2026, 11, 30, 9, tzinfo=ZoneInfo("Asia/Tokyo"))


def test_the_digest_comes_once_a_week_to_those_who_can_act(olivia, bob, alice, charlie, research, judged):
    Feedback.objects.update(at=MONDAY - timedelta(days=3))
    assert digest.send_digests(MONDAY - timedelta(hours=2)) == 0
    for _ in range(2):
        digest.send_digests(MONDAY)
    rows = Notice.objects.filter(kind="feedback-digest")
    found = {row.user.username: (row.facts["up"], row.facts["down"], row.facts["comments"]) for row in rows}
    assert found == {"olivia": (3, 2, 2), "bob": (3, 1, 1)}
    assert rows.count() == 2


def test_a_week_without_feedback_brings_no_digest(olivia):
    assert digest.send_digests(MONDAY) == 0
