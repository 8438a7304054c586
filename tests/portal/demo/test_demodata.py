"""The made-up company: complete, alike for one seed, closed to everybody who has no account in it, and like life."""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.conf import global_settings
from django.contrib.auth import authenticate
from django.core.management import CommandError, call_command
from django.db import transaction
from django.db.models import Count, F, Sum
from django.utils import timezone

from modelregistry.models import Host, Replica, ServedModel
from modelregistry.overview import ModelState
from modelregistry.supervisor import repository
from portal.accounts.models import Membership, Tenant, User
from portal.adoption.models import COMPANY, AdoptionJourney, AdoptionSummary
from portal.audit import tracking
from portal.audit.models import AuditEvent
from portal.demo import company, machines, money, staff
from portal.demo.plan import LARGE, NEW
from portal.demo.workdays import closes_month
from portal.guide.models import HouseRules
from portal.keys.models import ApiKey, ManagementKey
from portal.lessons import progress, seminars
from portal.lessons.models import Seminar, StepDone
from portal.news.models import Announcement
from portal.notifications.models import Notice
from portal.notifications.types import KINDS
from portal.operations.overview import read_overview
from portal.prices import price_list
from portal.prices.models import TenantBudget, TokenPrice
from portal.quotas.models import Quota, QuotaRequest
from portal.status.models import StatusInterval, StatusWatch
from portal.usage.costs import read_spending
from portal.usage.loop_rates import sum_rates
from portal.usage.models import LoopDay, RejectionHour, UsageDay, UsageHour, UsageRecord
from portal.use_cases.content import check_content, content_of
from portal.use_cases.models import HelpedMark, UseCase
from portal.web import workdays
from tests.html import all_of, has

pytestmark = pytest.mark.django_db

TOKYO = ZoneInfo("Asia/Tokyo")
NOW = datetime(2026, 11, 19, 15, 20, tzinfo=TOKYO)  # a Thursday
SMALL = company.Size(people=120, days=40, amount=0.05)


@pytest.fixture(scope="module")
def filled(django_db_setup, django_db_blocker) -> Iterator[company.Filled]:
    """Made once, as it takes some seconds; what a test does to it is taken back."""
    with django_db_blocker.unblock(), transaction.atomic():
        with time_machine.travel(NOW, tick=False):
            made = company.fill_database(SMALL, NOW.astimezone(UTC), 5, directory=False)
        yield made
        transaction.set_rollback(True)


@pytest.fixture
def empty(db) -> None:
    """Provide a database without the company, also when it is there for other tests."""
    call_command("flush", verbosity=0, interactive=False)


def test_it_has_what_pages_show(filled):
    assert (filled.tenants, filled.people) == (20, User.objects.count())
    assert Tenant.objects.exclude(time_zone="Asia/Tokyo").count() == 1
    assert User.objects.filter(is_staff=True).count() == 4
    assert User.objects.annotate(n=Count("memberships")).filter(n=2).exists()
    assert set(QuotaRequest.objects.values_list("state", flat=True)) == set(QuotaRequest.State.values)
    for model in (ApiKey, Quota, RejectionHour, UsageHour, AuditEvent, ManagementKey, Notice):
        assert model.objects.exists()
    assert ApiKey.objects.filter(replaces__isnull=False).exists()
    assert not Tenant.objects.exclude(memberships__role=Membership.Role.ADMIN).exists()


def test_the_status_of_its_models_and_the_programs_of_its_people_are_known(filled):
    downs = StatusInterval.objects.filter(kind=StatusInterval.Kind.DOWN)
    [down] = downs.exclude(ended_at=None)
    assert (down.model.name, (NOW - down.began_at).days) == (LARGE, 23)
    [added] = AuditEvent.objects.filter(action="model.add", object_name=NEW)
    assert list(downs.filter(ended_at=None).values_list("model__name", "began_at")) == [(NEW, added.at)]
    assert not StatusInterval.objects.filter(reason="new", began_at__gte=NOW).exists()
    assert (NOW - StatusWatch.objects.get().since).days == SMALL.days
    assert not StatusInterval.objects.filter(began_at=NOW, ended_at__isnull=False).exists()
    classes = set(UsageRecord.objects.values_list("client_class", flat=True))
    assert {"openai", "dify", "openwebui", "claude-code", "cline", "continue"} <= classes
    assert "" not in classes


def test_every_call_is_in_the_sums(filled):
    calls = UsageRecord.objects.count()
    assert calls == filled.calls > 1000
    assert UsageDay.objects.aggregate(n=Sum("requests"))["n"] == calls
    assert UsageHour.objects.aggregate(n=Sum("requests"))["n"] == calls


def test_tokens_cost_something_here_and_elsewhere_and_some_budgets_are_nearly_spent(filled):
    kinds = Counter(TokenPrice.objects.values_list("kind", flat=True))
    assert kinds["internal"] > kinds["outside"] > 0
    for kind in TokenPrice.Kind.values:
        for model in set(TokenPrice.objects.filter(kind=kind).values_list("model", flat=True)):
            rows = list(TokenPrice.objects.filter(kind=kind, model=model).order_by("first_day"))
            for row in rows:
                price_list.check_price(row, [one for one in rows if one != row], NOW.date())
    budgets = list(TenantBudget.objects.select_related("tenant"))
    month = NOW.date().replace(day=1)
    spent = read_spending([one.tenant for one in budgets], {one.tenant_id: month for one in budgets})
    shares = [float(spent[one.tenant_id]) / one.yen for one in budgets]
    assert any(0.8 <= share < 1 for share in shares)
    assert any(share >= 1 for share in shares)
    assert set(Notice.objects.filter(kind__startswith="budget-").values_list("kind", flat=True)) == {
        *("budget-near", "budget-reached"),
    }


@pytest.mark.parametrize(
    ("today", "month"), [((2027, 1, 1), (2026, 12, 1)), ((2027, 3, 7), (2027, 2, 1)), ((2027, 3, 8), (2027, 3, 1))]
)
def test_budgets_are_not_made_of_the_first_days_of_a_month(today, month):
    assert money.month_of_budgets(date(*today)) == date(*month)


def test_news_and_rules_are_in_both_languages(filled):
    stories = list(Announcement.objects.all())
    for one in stories:
        assert all((one.title_ja, one.title_en, one.text_ja, one.text_en))
        assert one.created_at <= NOW
    assert {one.level for one in stories} == set(Announcement.Level.values)
    assert {one.ends_at < NOW for one in stories} == {True, False}
    assert [one.for_everyone for one in stories].count(False) == 1
    rules = HouseRules.objects.get()
    assert all((rules.rules_ja, rules.rules_en, rules.contact_ja, rules.contact_en))
    assert rules.changed_at < NOW


def test_one_seminar_is_over_and_to_another_the_employee_is_invited(filled):
    past, coming = Seminar.objects.order_by("begins_at")
    assert past.ended_at < NOW < coming.begins_at
    assert past.participants.count() >= 5
    assert not ApiKey.objects.usable().filter(pk__in=past.participants.values("key")).exists()
    employee = User.objects.get(username=staff.EMPLOYEE)
    with time_machine.travel(NOW, tick=False):
        assert list(seminars.seminars_of(employee, NOW)) == [coming]
    assert Notice.objects.filter(user=employee, kind="seminar-invited").exists()


def test_people_are_at_different_places_in_the_courses(filled):
    employee = User.objects.get(username=staff.EMPLOYEE)
    [mine] = [one for one in progress.read_progress(employee) if one.course.name == "everyone"]
    assert 0 < mine.done < len(mine.steps)
    assert not mine.is_finished
    assert not StepDone.objects.filter(at__gt=NOW).exists()
    steps = Counter(StepDone.objects.values_list("step", flat=True))
    assert steps["playground"] > steps["practised"] > steps["helped"] > 0


def test_the_spread_of_use_has_a_funnel_and_use_cases(filled):
    journeys = AdoptionJourney.objects.filter(scope=COMPANY)
    with_key = journeys.filter(key_on__isnull=False)
    answered = with_key.filter(answered_on__isnull=False)
    assert journeys.count() > with_key.count() > answered.count() > 0
    assert {"playground", "openai", "coding"} <= set(answered.values_list("channel", flat=True))
    counts = AdoptionSummary.objects.get(scope=COMPANY).counts
    assert counts["ways"]["playground"]
    assert len(counts["use_cases"]) > 1
    assert len(set(HelpedMark.objects.filter(at__lt=NOW).values_list("at", flat=True))) > 10


def test_the_four_bit_model_loops_more_at_low_temperature(filled):
    rates = sum_rates(LoopDay.objects.filter(looped__gt=0), "model")
    assert [model for (model,) in rates] == [LARGE]
    bands = {
        band: rate.share or 0 for (band,), rate in sum_rates(LoopDay.objects.filter(model=LARGE), "temperature").items()
    }
    assert bands["0"] > bands["none"]
    assert set(LoopDay.objects.values_list("version", flat=True)) == set(machines.VERSIONS.values())


def test_nothing_is_of_the_future_or_of_a_key_that_did_not_work(filled):
    assert not UsageRecord.objects.filter(started_at__gt=NOW).exists()
    assert not AuditEvent.objects.filter(at__gt=NOW).exists()
    assert not QuotaRequest.objects.filter(asked_at__gt=NOW).exists()
    calls = UsageRecord.objects.filter
    assert not calls(started_at__lt=F("key__created_at")).exists()
    assert not calls(started_at__gt=F("key__expires_at")).exists()
    assert not calls(started_at__gt=F("key__revoked_at")).exists()


def test_models_that_answer_no_one_are_shown_as_samples(filled, client):
    client.force_login(User.objects.get(username=staff.EMPLOYEE))
    for path in ("/models/", "/status/"):
        page = client.get(path)
        assert has(page, "[data-made-up]")
        assert not has(page, ".state.fine")
    assert has(client.get("/models/ezo-9b/"), "[data-made-up]")


def test_people_of_the_demo_tenant_have_proposed_use_cases_lately(filled, client):
    cases = UseCase.objects.filter(tenant__slug=staff.HOME)
    assert (cases.exclude(current=None).count(), cases.filter(current=None).count()) == (2, 1)
    assert all(NOW - timedelta(days=30) < case.created_at < NOW for case in cases)
    for case in cases:
        check_content(content_of(case.versions.get()))
    client.force_login(User.objects.get(username=staff.ADMIN))
    assert len(all_of(client.get("/use-cases/"), "#waiting li")) == 1
    assert client.get(f"/use-cases/{cases.exclude(current=None).first().pk}/").status_code == 200


def test_what_is_made_up_is_not_recorded_as_done_now(filled):
    first = AuditEvent.objects.filter(action="model.add").values("object_id").annotate(n=Count("pk"))
    assert {row["n"] for row in first} == {1}
    assert not AuditEvent.objects.filter(object_kind__in=["host", "tenant", "alias", "model-access"]).exists()
    people = AuditEvent.objects.filter(action="session.begin")
    assert {event.object_name for event in people} <= {tracking.name_of(user) for user in User.objects.all()}


def test_a_time_in_a_notice_is_that_of_the_office(filled):
    notice = Notice.objects.filter(kind="directory-trouble").first()
    assert datetime.fromisoformat(notice.facts["at"]).utcoffset() == timezone.localtime(notice.at).utcoffset()


def test_people_work_on_working_days_and_eat_at_noon(filled):
    by_hour: Counter[int] = Counter()
    by_day: Counter[date] = Counter()
    people = UsageRecord.objects.filter(user__isnull=False, tenant__time_zone="Asia/Tokyo")
    for at in people.values_list("started_at", flat=True):
        by_hour[at.astimezone(TOKYO).hour] += 1
        by_day[at.astimezone(TOKYO).date()] += 1
    assert by_hour[12] < 0.7 * by_hour[11]
    assert by_hour[3] == 0
    off = [count for day, count in by_day.items() if not workdays.is_working_day(day)]
    assert sum(off) < 0.1 * by_day.total()


def test_holidays_are_those_of_the_calendar():
    """Of 2026: https://www8.cao.go.jp/chosei/shukujitsu/gaiyou.html."""
    told = "1/1 1/12 2/11 2/23 3/20 4/29 5/3 5/4 5/5 5/6 7/20 8/11 9/21 9/22 9/23 10/12 11/3 11/23"
    assert sorted(workdays.holidays(2026)) == [date(2026, *map(int, day.split("/"))) for day in told.split()]
    assert closes_month(date(2026, 10, 28))
    assert not closes_month(date(2026, 10, 27))


def test_the_same_seed_makes_the_same_company_but_for_its_keys(filled, db):
    def recorded():
        names = list(User.objects.order_by("pk").values_list("username", "last_name", "first_name"))
        sums = list(UsageDay.objects.order_by("day", "model", "prompt_tokens").values_list("day", "prompt_tokens"))
        return names, sums

    before, digests = recorded(), set(ApiKey.objects.values_list("digest", flat=True))
    call_command("flush", verbosity=0, interactive=False)
    with time_machine.travel(NOW, tick=False):
        company.fill_database(SMALL, NOW, 5, directory=False)
    assert recorded() == before
    assert digests.isdisjoint(ApiKey.objects.values_list("digest", flat=True))


def test_some_quotas_are_near_their_end_and_some_at_it(filled):
    begin = NOW.date().replace(day=1)
    used = []
    for quota in Quota.objects.filter(default_for="", user=None, key=None, unit="tokens", window="month"):
        days = UsageDay.objects.filter(tenant=quota.tenant, day__gte=begin)
        spent = days.aggregate(n=Sum(F("prompt_tokens") + F("completion_tokens"), default=0))["n"]
        used.append(spent / quota.amount)
    assert any(0.8 <= share < 1 for share in used)
    assert any(share >= 1 for share in used)
    assert sum(share < 0.8 for share in used) > 10


def test_every_notice_can_be_read_and_none_is_mailed(filled):
    for notice in Notice.objects.all():
        kind = KINDS[notice.kind]
        assert kind.title(notice.facts)
        assert kind.text(notice.facts)
        assert notice.at <= NOW
    assert not Notice.objects.filter(mailed_at=None).exists()
    told = Notice.objects.filter(user__username=staff.ADMIN).values_list("kind", flat=True)
    assert {"request-asked", "quota-near"} <= set(told)


def test_nobody_is_let_in_but_the_three_to_look_around_with(filled, settings, rf):
    settings.PASSWORD_HASHERS = global_settings.PASSWORD_HASHERS  # with which the company was made
    request = rf.get("/")
    for name in (staff.EMPLOYEE, staff.ADMIN, staff.OPERATOR):
        assert authenticate(request, username=name, password=filled.password)
    others = User.objects.exclude(username__in=[staff.EMPLOYEE, staff.ADMIN, staff.OPERATOR])
    assert not any(user.has_usable_password() for user in others)


def test_beside_a_directory_there_are_no_accounts_to_look_around_with(empty):
    filled = company.fill_database(SMALL, NOW, 5, directory=True)
    assert filled.password == ""
    assert not any(user.has_usable_password() for user in User.objects.all())
    assert not User.objects.exclude(directory_id=None).exists()


def test_a_supervisor_of_this_machine_starts_none_of_its_models(filled, settings):
    mine = Host.objects.create(name=settings.HOST_NAME)
    assert Replica.objects.filter(state="ready").count() > 10
    assert repository.desired_models(mine.pk) == {}
    free = ServedModel.objects.filter(host=None)
    assert free.exists()
    assert not free.filter(placements=None).exists()


def test_one_host_is_silent_and_what_ran_there_was_moved(filled):
    seen = read_overview(NOW, {})
    (silent,) = seen.silent
    (remainder,) = silent.placed
    assert remainder[1].now.moved_to
    (model,) = [model for model in seen.models if model.name == remainder[0].name]
    assert (model.state, model.troubled) == (ModelState.READY, None)
    assert seen.controller is not None
    assert seen.controller.alive
    assert {"host-silent", "replicas-moved"} <= set(Notice.objects.values_list("kind", flat=True))


def test_one_model_is_split_over_two_hosts_and_another_has_no_room_for_what_other_work_has_booked(filled):
    seen = read_overview(NOW, {})
    (split,) = [model for model in seen.models if model.now.nodes > 1]
    assert (split.state, split.troubled) == (ModelState.READY, None)
    assert [(one.now.rank, one.now.state) for one in split.replicas] == [(0, "ready"), (1, "joined")]
    assert len(split.hosts) == 2
    (short,) = seen.short
    (shared,) = [host for host in seen.hosts if any(one.others for one in host.now.bookings)]
    (booked,) = [one for one in shared.now.bookings if one.others]
    assert short.now.shortage.host == shared.name
    assert short.now.shortage.free == booked.offered - booked.others < short.now.shortage.need


def test_the_command_fills_an_empty_database_and_no_other(empty, settings, tmp_path):
    settings.CACHE = tmp_path  # nothing was fetched yet
    out = StringIO()
    call_command("demodata", people=60, days=5, amount=0.02, stdout=out)
    assert staff.EMPLOYEE in out.getvalue()
    assert str(Tenant.objects.count()) in re.findall(r"\d+", out.getvalue())
    calls = UsageRecord.objects.count()
    with pytest.raises(CommandError) as caught:
        call_command("demodata", stdout=out)
    assert isinstance(caught.value.__cause__, company.NotEmpty)
    assert UsageRecord.objects.count() == calls
    real = ServedModel.objects.filter(host=None, placements=None)  # the others were placed on hosts that do not exist
    assert set(real.values_list("name", flat=True)) == {"smollm2", "minilm"}
