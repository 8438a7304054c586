"""The page of the audit log: who sees what of it, searching, paging, in words, and as a file."""

import csv
import io
import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.db import models
from django.test import AsyncClient
from django.utils import timezone, translation

from modelregistry.models import ServedModel
from portal.accounts.models import Membership, Tenant, User
from portal.audit import audit_log, tracking
from portal.audit.models import AuditEvent
from portal.keys.lifecycle import issue_key, revoke_key
from portal.keys.models import ApiKey
from portal.quotas.models import Quota
from tests.html import has
from tests.portal.browsing import client_of
from tests.portal.recorded import clear_audit_log

pytestmark = pytest.mark.django_db

PAGE = "/audit/"
TOKYO = ZoneInfo("Asia/Tokyo")


def page(user: User, **asked: object) -> str:
    answer = client_of(user).get(PAGE, asked)
    assert answer.status_code == 200
    return answer.content.decode()


def names(user: User, **asked: str) -> set[tuple[str, str]]:
    """Return (action, object) of what this person sees."""
    events = audit_log.AuditQuery(**asked).apply(audit_log.visible_events(user), timezone.get_default_timezone())
    return set(events.values_list("action", "object_name"))


def happened(count: int, action: str = "host.change", **more) -> None:
    """Make so many events, a minute apart, the newest now."""
    now = timezone.now()
    AuditEvent.objects.bulk_create(
        AuditEvent(
            **{
                "at": now - timedelta(minutes=number),
                "action": action,
                "object_kind": "host",
                "object_id": str(number),
                "object_name": f"gpu-{number:05}",
                "via": "page",
                **more,
            },
        )
        for number in range(count)
    )


# --- whose


@pytest.fixture
def doings(alice, bob, charlie, olivia, research, sales) -> None:
    """Make an event in each tenant and one that is of no tenant."""
    clear_audit_log()
    key, _ = issue_key(tenant=research, user=alice, name="alices")
    revoke_key(key)
    issue_key(tenant=research, service="dify", name="research-service")
    issue_key(tenant=sales, user=charlie, name="charlies")
    ServedModel.objects.create(name="far", engine="external", url="http://10.0.0.5:8000")
    for person in (alice, bob, charlie):
        tracking.record_event("session.begin", person, "user", actor=person)


def kept(events: set[tuple[str, str]]) -> set[str]:
    """Return what the events are about, without the random beginnings of keys."""
    return {name.split("… ")[-1] for _action, name in events}


def test_operators_see_everything(doings, olivia):
    assert kept(names(olivia)) == {
        *("alices", "research-service", "charlies", "far"),
        *("alice (Alice)", "bob (Bob)", "charlie (Charlie)"),
    }


def test_tenant_admins_see_what_was_done_in_their_tenant(doings, bob):
    assert kept(names(bob)) == {"alices", "research-service", "bob (Bob)"}


def test_members_see_their_own_sign_ins_and_keys(doings, alice):
    assert kept(names(alice)) == {"alices", "alice (Alice)"}
    assert {action for action, _ in names(alice)} == {"key.add", "key.revoke", "session.begin"}


def test_outsiders_see_nothing_of_another_tenant(doings, charlie):
    assert kept(names(charlie)) == {"charlies", "charlie (Charlie)"}


def test_a_former_admin_sees_no_more_of_the_tenant(doings, bob, research):
    Membership.objects.filter(user=bob).delete()
    assert kept(names(bob)) == {"bob (Bob)"}


def test_asking_for_another_tenant_gives_nothing_of_it(doings, bob, charlie):
    assert "charlies" not in page(bob, tenant="sales")
    assert "research-service" not in page(charlie, tenant="research")
    key = AuditEvent.objects.get(object_name__endswith="charlies")
    assert "charlies" not in page(bob, kind="key", number=key.object_id)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_file_holds_no_more_than_the_page(doings, bob, kind):
    text = exported(bob, format=kind)
    assert "research-service" in text
    assert "charlies" not in text
    assert "far" not in text


@pytest.mark.parametrize(
    "condition", [{"tenant": "sales"}, {"since": "yesterday"}, {"until": "2026-02-30"}, {"what": "nothing like it"}]
)
def test_a_file_by_a_condition_that_does_not_exist_is_refused(doings, bob, condition):
    """It would contain everything, and be taken for what was asked for."""
    assert client_of(bob).get(f"{PAGE}export/", condition).status_code == 400


# --- searching


def test_it_is_searched_by_what_somebody_remembers(doings, olivia):
    assert kept(names(olivia, text="SERVICE")) == {"research-service"}
    assert kept(names(olivia, what="model")) == {"far"}
    assert kept(names(olivia, what="session", who="Alice")) == {"alice (Alice)"}
    assert kept(names(olivia, tenant="sales")) == {"charlies"}
    assert names(olivia, text="%") == set()


def test_the_subject_key_is_not_the_management_key(doings, alice, olivia):
    happened(1, "management-key.add")
    assert {action.partition(".")[0] for action, _ in names(olivia, what="key")} == {"key"}


def test_days_begin_where_the_reader_is(olivia):
    clear_audit_log()
    for hour in (14, 15):  # 23:00 and 0:00 in Tokyo
        happened(1, at=datetime(2026, 11, 2, hour, tzinfo=UTC))
    since = audit_log.AuditQuery(since=date(2026, 11, 3)).apply(audit_log.visible_events(olivia), TOKYO)
    assert [event.at.hour for event in since] == [15]
    until = audit_log.AuditQuery(until=date(2026, 11, 2)).apply(audit_log.visible_events(olivia), TOKYO)
    assert [event.at.hour for event in until] == [14]


def test_what_is_no_date_is_said_and_left_out(doings, olivia):
    text = page(olivia, since="tomorrow", what="model")
    assert has(text, ".error")
    assert "far" in text
    assert "alices" not in text


def test_one_thing_s_story_is_a_click_away(doings, olivia):
    key = AuditEvent.objects.filter(object_name__endswith="alices").first()
    assert f"?kind=key&amp;number={key.object_id}" in page(olivia)
    shown = client_of(olivia).get(PAGE, {"kind": "key", "number": key.object_id}).context["events"]
    assert [row.event.action for row in shown] == ["key.revoke", "key.add"]


# --- paging


def test_pages_follow_each_other_without_gap_or_repetition(olivia):
    clear_audit_log()
    now = timezone.now()
    happened(130)
    AuditEvent.objects.bulk_create(  # of one instant, as of one transaction
        AuditEvent(at=now, action="host.add", object_kind="host", object_id="x", object_name=f"same-{n}", via="page")
        for n in range(60)
    )
    seen, mark = [], ""
    while True:
        found, mark = audit_log.read_page(audit_log.visible_events(olivia), mark)
        seen += [event.pk for event in found]
        if not mark:
            break
    assert len(seen) == 190
    assert seen == list(AuditEvent.objects.order_by("-at", "-pk").values_list("pk", flat=True))


@pytest.mark.parametrize("mark", ["", "_", "yesterday_5", "2026-11-02T09:00:00_5", "2026-99-99T09:00:00+00:00_5", "5"])
def test_a_mark_that_is_none_begins_at_the_newest(doings, olivia, mark):
    assert "research-service" in page(olivia, before=mark)


def test_the_last_page_says_where_the_others_are(olivia):
    happened(60)
    first = client_of(olivia).get(PAGE)
    assert has(first, ".pages a[rel=next]")
    assert not has(first, ".pages a[data-newest]")
    second = page(olivia, before=first.context["older"])
    assert has(second, ".pages a[data-newest]")
    assert not has(second, ".pages a[rel=next]")


def test_a_page_asks_the_same_few_questions_of_any_log(olivia, bob, research, django_assert_max_num_queries):
    happened(20_000, tenant=research)
    for person in (olivia, bob):
        client = client_of(person)
        client.get(PAGE)
        with django_assert_max_num_queries(9):
            client.get(PAGE)


# --- in words


def words(event: AuditEvent) -> list[tuple[str, str, str]]:
    row = audit_log.describe_event(event, TOKYO)
    return [(change.field, change.before, change.after) for change in row.changes]


def label(model: type[models.Model], name: str) -> str:
    """Return the name of a field in the active language."""
    return str(model._meta.get_field(name).verbose_name)


def test_changes_are_told_by_the_names_of_fields_and_choices(alice, research):
    place = alice.memberships.get()
    place.role = "admin"
    place.save()
    read = []
    for language in ("en", "ja"):
        with translation.override(language):
            read.append(words(AuditEvent.objects.latest("pk")))
            member, admin = (str(Membership.Role(role).label) for role in ("member", "admin"))
            assert read[-1] == [(label(Membership, "role"), member, admin)]
    assert not set(read[0][0]) & set(read[1][0])


def test_secrets_stay_secret_and_times_are_told_in_the_reader_s_zone(research, alice):
    key, _ = issue_key(
        tenant=research, user=alice, name="laptop", expires_at=datetime(2026, 12, 31, 15, tzinfo=UTC), created_by=alice
    )
    seen = {field: after for field, _, after in words(AuditEvent.objects.filter(action="key.add").latest("pk"))}
    assert seen[label(ApiKey, "expires_at")] == "2027-01-01 00:00"
    assert seen[label(ApiKey, "digest")]  # that there is one
    assert key.digest not in str(seen)
    assert seen[label(ApiKey, "every_model")] not in ("", "–", "True")
    assert seen[label(ApiKey, "created_by")] == "alice (Alice)"


def test_amounts_are_grouped(research):
    Quota.objects.create(tenant=research, unit="tokens", window="day", amount=1_000_000)
    assert (label(Quota, "amount"), "", "1,000,000") in words(AuditEvent.objects.latest("pk"))


def test_what_no_model_tells_of_is_still_told():
    event = AuditEvent(action="directory.sync", object_kind="directory", after={"name_taken": ["abe"], "left": 2})
    assert words(event) == [("name taken", "", "abe"), ("left", "", "2")]


def test_every_action_has_words(alice, bob, research):
    """Of what these tests and others make; who adds a verb adds its words."""
    code = "\n".join(path.read_text() for path in Path(settings.BASE_DIR, "portal").rglob("*.py"))
    recorded = set(re.findall(r'record_event\(\s*"([a-z-]+\.[a-z-]+)"', code)) | {"directory.force", "directory.sync"}
    assert "session.break-glass" in recorded
    kinds = {watched.kind for watched in tracking.tracked_models().values()}
    verbs = {"add", "change", "remove", "revoke", "granted", "refused", "withdrawn", "leave", "return", "on", "off"}
    verbs |= {"password", "start", "stop", "restart", "retire"} | {action.partition(".")[2] for action in recorded}
    assert kinds | {action.partition(".")[0] for action in recorded} <= set(audit_log.SUBJECTS)
    assert verbs <= set(audit_log.VERBS)


def test_the_page_tells_who_and_from_where(doings, olivia, alice):
    happened(1, actor=alice, actor_name="alice", address="10.2.3.4")
    happened(1, "membership.add", via="directory")
    text = page(olivia)
    assert "10.2.3.4" in text
    assert has(text, ".events td[data-via=directory]")


def test_an_empty_log_says_so(alice):
    clear_audit_log()
    assert has(page_without_sign_in(alice), ".empty")
    assert not has(page(alice, text="nothing like it"), ".events tbody tr")


def page_without_sign_in(user: User) -> str:
    client = client_of(user)
    clear_audit_log()
    return client.get(PAGE).content.decode()


def test_names_are_text_and_no_markup(olivia, research):
    Tenant.objects.create(slug="x", name="<script>alert(1)</script>")
    assert "<script>alert" not in page(olivia)


# --- as a file


def exported(user: User, **asked: str) -> str:
    answer = client_of(user).get(f"{PAGE}export/", asked)
    assert answer.streaming
    return b"".join(answer).decode()


def test_the_json_file_has_everything_as_it_is_stored(doings, olivia, alice):
    events = json.loads(exported(olivia, format="json", text="alices"))
    assert [event["action"] for event in events] == ["key.revoke", "key.add"]
    assert events[0]["tenant"] == "research"
    assert events[0]["before"] == {"revoked_at": None}
    assert json.loads(exported(olivia, format="json", text="nothing like it")) == []


def test_the_csv_file_opens_in_a_spreadsheet(olivia, research, alice):
    issue_key(tenant=research, user=alice, name="営業用")
    happened(1, object_name="=HYPERLINK(1)")
    text = exported(olivia)
    assert text.startswith("\ufeffat,who,")
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    assert len(rows) == AuditEvent.objects.count()
    assert "'=HYPERLINK(1)" in {row["object"] for row in rows}
    [key] = [row for row in rows if row["object"].endswith("営業用")]
    assert json.loads(key["after"])["name"] == "営業用"


def test_a_large_file_is_made_in_pieces(olivia, django_assert_max_num_queries):
    happened(4500)
    client = client_of(olivia)
    with django_assert_max_num_queries(14):
        pieces = list(client.get(f"{PAGE}export/"))
    assert len(pieces) == 10  # nine of 500 rows, the rest
    assert b"".join(pieces).count(b"\r\n") == AuditEvent.objects.count() + 1


@pytest.mark.django_db(transaction=True)
async def test_the_server_s_own_way_of_calling_views_sends_the_file_too(olivia):
    client = AsyncClient()
    await client.aforce_login(olivia)
    answer = await client.get(f"{PAGE}export/", {"format": "json"})
    text = b"".join([piece async for piece in answer]).decode()
    assert [event["action"] for event in json.loads(text)] == ["session.begin", "user.add"]
