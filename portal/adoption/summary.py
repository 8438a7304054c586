"""Count journeys by tenant, week of arrival and channel, for the pages: only what may be shown is stored.

Weeks are from Monday to Sunday. Only whole weeks are counted, so numbers change on Mondays. The steps of `STEPS`, with
days counted from the arrival as day 1: a key (also the playground's); a first answer; active on three or more of days 1
to 7; in days 8 to 14; in days 22 to 28. The last three are counted among all who arrived, so a later step may have more
people than the one before. A cohort is who arrived in one week. A step of it is counted when its days are over for all;
totals are those of the cohorts of which all are, up to WEEKS of them.

`suppression` says which counts are hidden. The tables of weeks and of channels share their totals, so they are hidden
together; what is hidden for a tenant is hidden on every page. Retention has no totals over weeks, but those of its
weeks that are steps are hidden with them.

What is left is stored in multiples of five (`suppression.round_people`), since the totals of one Monday less those of
the next would say how many are in the week that left them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from django.db.models import Count, Q
from django.utils import timezone

from portal.accounts.tenant_names import read_tenant_names
from portal.adoption import channels, journeys
from portal.adoption.models import COMPANY, AdoptionJourney, AdoptionRun, AdoptionSummary
from portal.adoption.suppression import LEAST, TOTAL, Cell, hide_small, round_people
from portal.feedback.models import Feedback
from portal.keys.canary_key import TENANT as CANARY_TENANT
from portal.keys.models import ApiKey
from portal.usage.models import UsageClientDay, UsageDay
from portal.use_cases.models import HelpedMark

STEPS = ("arrived", "key", "answered", "regular", "week2", "week4")
# Days after a cohort's last arrival until the step can be counted.
DUE = {"arrived": 1, "key": 1, "answered": 1, "regular": 7, "week2": 14, "week4": 28}
REGULAR = 3  # active days of the first week
WEEKS = 26  # of cohorts, and of the line of active people
RETENTION = 12  # weeks after the arrival
SAME_AS_STEP = {2: "week2", 4: "week4"}  # weeks of retention that are counted as steps as well
RECENT = 4  # weeks of which the use is shown
MODELS = 10
USE_CASES = 10
# What a summary stores by column.
TABLES = ("weeks", "channels", "active", "retention", "ways", "models", "use_cases")
WEEK = timedelta(days=7)
OF_CHANNELS = STEPS[2:]
Counter = dict[Cell, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohorts:
    """The Mondays that matter on the day `as_of`, itself a Monday."""

    as_of: date

    @property
    def closed(self) -> list[date]:
        """The weeks of arrival that have a row, oldest first."""
        return [self.as_of - WEEK * n for n in range(WEEKS + RECENT, 0, -1)]

    @property
    def complete(self) -> list[date]:
        """Those of which each step can be counted."""
        return [week for week in self.closed if self.is_due(week, DUE["week4"])]

    def is_due(self, week: date, days: int) -> bool:
        """Return whether so many days, each one's first included, are over for all who arrived in the week."""
        return week + timedelta(days=6 + days) <= self.as_of


def monday_of(day: date) -> date:
    return day - timedelta(days=day.weekday())


def update_summaries(today: date) -> None:
    """Store the counts of the company and of each tenant, as of the beginning of this week."""
    cohorts = Cohorts(as_of=monday_of(today))
    rows = list(AdoptionJourney.objects.filter(arrived_on__lt=cohorts.as_of))
    names = {pk: one for pk, one in read_tenant_names().items() if one.slug != CANARY_TENANT}
    scopes = [*(pk for pk in names), TOTAL]
    shown: dict[str, Any] = {name: {pk: {} for pk in scopes} for name in TABLES}
    _add_steps(shown, rows, scopes, cohorts)
    _add_active(shown["active"], rows, scopes, cohorts)
    _add_retention(shown["retention"], shown["weeks"], rows, scopes, cohorts)
    _add_uses(shown, scopes, cohorts)
    _add_use_cases(shown["use_cases"], scopes, cohorts)
    for pk in scopes:
        counts: dict[str, Any] = {name: table[pk] for name, table in shown.items()}
        if pk == TOTAL:
            counts["tenants"] = [[one.name, shown["weeks"][pk].get(TOTAL), one.slug] for pk, one in names.items()]
        AdoptionSummary.objects.update_or_create(scope=_number(pk), defaults={"as_of": cohorts.as_of, "counts": counts})
    AdoptionSummary.objects.exclude(scope__in=[_number(pk) for pk in scopes]).delete()


def _number(scope: Any) -> int:
    return COMPANY if scope == TOTAL else scope


def has_done(row: AdoptionJourney, step: str, as_of: date) -> bool:
    """Return whether the person had done the step before the day `as_of`."""
    if step == "arrived":
        return True
    if step == "key":
        return row.key_on is not None and row.key_on < as_of
    if step == "answered":
        return row.answered_on is not None and row.answered_on < as_of
    if step == "regular":
        return (row.active & 0x7F).bit_count() >= REGULAR
    return was_active_in_week(row, 2 if step == "week2" else 4)


def was_active_in_week(row: AdoptionJourney, number: int) -> bool:
    """Return whether any day of this week after the arrival was active; the first is number 1."""
    return bool(row.active >> 7 * (number - 1) & 0x7F)


def _count(
    rows: Iterable[AdoptionJourney], scopes: list[Any], columns: list[Any], column_of: Callable[[AdoptionJourney], Any]
) -> Counter:
    """Return the people by (scope, column), with zeros; the company's own rows are the total of scopes."""
    found: Counter = {(scope, column): 0 for scope in scopes for column in [*columns, TOTAL]}
    wanted = set(columns)
    for row in rows:
        scope, column = (TOTAL if row.scope == COMPANY else row.scope), column_of(row)
        if column in wanted and (scope, TOTAL) in found:
            found[scope, column] += 1
            found[scope, TOTAL] += 1
    return found


def _add_steps(shown: dict[str, Any], rows: list[AdoptionJourney], scopes: list[Any], cohorts: Cohorts) -> None:
    complete = cohorts.complete
    empty = _zeros(_count(rows, scopes, cohorts.closed, _week_of))
    whole = [row for row in rows if _week_of(row) in set(complete)]
    answered = [row for row in whole if has_done(row, "answered", cohorts.as_of)]
    unused = _zeros(_count(answered, scopes, list(channels.ORDER), _channel_of))
    for step in STEPS:
        done = [row for row in whole if has_done(row, step, cohorts.as_of)]
        by_week = _count(done, scopes, complete, _week_of)
        by_channel = _count(done, scopes, list(channels.ORDER), _channel_of) if step in OF_CHANNELS else {}
        hidden = _hide_together(by_week, by_channel, empty, unused)
        _store(shown["weeks"], by_week, hidden, step)
        _store(shown["channels"], {cell: n for cell, n in by_channel.items() if cell[1] != TOTAL}, hidden, step)
        running = [week for week in cohorts.closed if week not in set(complete) and cohorts.is_due(week, DUE[step])]
        begun = _count([row for row in rows if has_done(row, step, cohorts.as_of)], scopes, running, _week_of)
        _store(shown["weeks"], *_without_totals(begun, empty), step)


def _zeros(counted: Counter) -> set[Cell]:
    return {cell for cell, number in counted.items() if not number}


def _hide_together(by_week: Counter, by_channel: Counter, empty: set[Cell], unused: set[Cell]) -> set[Cell]:
    """Return the hidden cells of two tables with the same totals."""
    also: set[Cell] = set()
    while True:
        hidden = hide_small(by_week, empty, also)
        if by_channel:
            hidden |= hide_small(by_channel, unused, {cell for cell in hidden if cell[1] == TOTAL})
        totals = {cell for cell in hidden if cell[1] == TOTAL}
        if totals <= also:
            return hidden
        also |= totals


def _without_totals(counted: Counter, empty: Iterable[Cell] = ()) -> tuple[Counter, set[Cell]]:
    """Return the cells but for the totals of rows, which the page does not have, and which of them are hidden."""
    hidden = hide_small({cell: None if cell[1] == TOTAL else n for cell, n in counted.items()}, empty)
    return {cell: n for cell, n in counted.items() if cell[1] != TOTAL}, hidden


def _store(table: dict[Any, Any], counted: Counter, hidden: set[Cell], step: str = "") -> None:
    """Write what may be shown, rounded, into the tables of scopes: by column, and by step if any. None: hidden."""
    for (scope, column), number in counted.items():
        name = column.isoformat() if isinstance(column, date) else str(column)
        value = None if (scope, column) in hidden or number < LEAST else round_people(number)
        if step:
            table[scope].setdefault(name, {})[step] = value
        else:
            table[scope][name] = value


def _week_of(row: AdoptionJourney) -> date:
    return monday_of(row.arrived_on)


def _channel_of(row: AdoptionJourney) -> str:
    return row.channel


def _add_active(table: dict[Any, Any], rows: list[AdoptionJourney], scopes: list[Any], cohorts: Cohorts) -> None:
    weeks = cohorts.closed[RECENT:]
    found: Counter = {(scope, week): 0 for scope in scopes for week in [*weeks, TOTAL]}
    arrived: set[Cell] = set()
    for row in rows:
        scope = TOTAL if row.scope == COMPANY else row.scope
        for week in weeks:
            if row.arrived_on < week + WEEK:
                arrived.add((scope, week))
                if (scope, week) in found and row.is_active_between(week, week + WEEK):
                    found[scope, week] += 1
    _store(table, *_without_totals(found, found.keys() - arrived))


def _add_retention(
    table: dict[Any, Any],
    weeks: dict[Any, Any],
    rows: list[AdoptionJourney],
    scopes: list[Any],
    cohorts: Cohorts,
) -> None:
    """Add who was active in which week after the arrival. `weeks`: the steps by week, where two of these are counted.

    What is hidden there, perhaps only to protect another week of the same total, is hidden here too.
    """
    empty = _zeros(_count(rows, scopes, cohorts.closed, _week_of))
    for number in range(1, RETENTION + 1):
        due = [week for week in cohorts.closed if cohorts.is_due(week, 7 * number)]
        if (step := SAME_AS_STEP.get(number)) is not None:
            for scope in scopes:
                for week in (one.isoformat() for one in due):
                    table[scope].setdefault(week, {})[str(number)] = weeks[scope][week][step]
            continue
        active = [row for row in rows if was_active_in_week(row, number)]
        _store(table, *_without_totals(_count(active, scopes, due, _week_of), empty), str(number))


def _add_uses(shown: dict[str, Any], scopes: list[Any], cohorts: Cohorts) -> None:
    """Add by which channels and with which models people got answers in the last RECENT weeks.

    A person may use several, so these add up to more than the people.
    """
    days = Q(day__gte=cohorts.as_of - WEEK * RECENT, day__lt=cohorts.as_of, user__isnull=False)
    people: dict[Cell, set[int]] = defaultdict(set)
    rows = UsageClientDay.objects.filter(days, answers__gt=0).order_by()
    used = set(rows.values_list("user_id", "tenant_id", "key_id", "client_class").distinct())
    keys = ApiKey.objects.filter(user__isnull=False).values_list("pk", "is_playground", "name")
    names = {pk: (is_playground, name) for pk, is_playground, name in keys}
    for user, tenant, key, client in used:
        is_playground, name = names.get(key, (False, ""))
        channel = channels.channel_of(client, is_playground=is_playground, key_name=name)
        people[tenant, channel].add(user)
        people[TOTAL, channel].add(user)
    ways: Counter = {(scope, channel): len(people[scope, channel]) for scope in scopes for channel in channels.ORDER}
    _store(shown["ways"], *_without_totals({**ways, **{(scope, TOTAL): 0 for scope in scopes}}, _zeros(ways)))
    answered = UsageDay.objects.filter(days).annotate(answers=journeys.ANSWERS).filter(answers__gt=0).order_by()
    counted = {"people": Count("user_id", distinct=True)}
    everywhere = dict(answered.values_list("model").annotate(**counted))
    most = sorted(everywhere, key=lambda model: (-everywhere[model], model))[:MODELS]
    models: Counter = {(TOTAL, model): everywhere[model] for model in most}
    for tenant, model, number in answered.filter(model__in=most).values_list("tenant_id", "model").annotate(**counted):
        models[tenant, model] = number
    found: Counter = {(scope, model): models.get((scope, model), 0) for scope in scopes for model in [*most, TOTAL]}
    _store(shown["models"], *_without_totals(found, _zeros(found)))


def _add_use_cases(table: dict[Any, Any], scopes: list[Any], cohorts: Cohorts) -> None:
    """Add how many people said of which use cases, in the last RECENT weeks, that they used them.

    Calls do not name their use case, and of who tries one only a keyed digest is kept until the day is over. So a
    person counts who gave a thumb for an answer to it, in the tenant of that request, or marked that it helped, in each
    tenant that they belong to.
    """
    since, until = (
        timezone.make_aware(datetime.combine(day, time.min)) for day in (cohorts.as_of - WEEK * RECENT, cohorts.as_of)
    )
    said = Q(at__gte=since, at__lt=until, use_case__retired_at=None, use_case__current__isnull=False)
    thumbs = Feedback.objects.filter(said, user__isnull=False, use_case__isnull=False).exclude(model="").order_by()
    found = set(thumbs.values_list("use_case_id", "user_id", "tenant_id").distinct())
    found |= set(HelpedMark.objects.filter(said).values_list("use_case_id", "user_id", "user__memberships__tenant_id"))
    people: dict[Cell, set[int]] = defaultdict(set)
    for case, user, tenant in found:
        people[TOTAL, case].add(user)
        people[tenant, case].add(user)
    everywhere = {case: len(users) for (scope, case), users in people.items() if scope == TOTAL}
    most = sorted(everywhere, key=lambda case: (-everywhere[case], case))[:USE_CASES]
    counted: Counter = {(scope, case): len(people[scope, case]) for scope in scopes for case in most}
    _store(table, *_without_totals({**counted, **{(scope, TOTAL): 0 for scope in scopes}}, _zeros(counted)))


def read_summary(scope: int) -> AdoptionSummary | None:
    """Return the counts of the company or of a tenant; None before the first run. One query."""
    return AdoptionSummary.objects.filter(scope=scope).first()


def update_if_due(now: datetime, *, rebuild: bool = False) -> int | None:
    """Bring journeys and summaries up to date, once on each day of the server's calendar or with `rebuild`.

    Returns how many rows of journeys changed; None if today's run was done.
    """
    run = AdoptionRun.objects.first()
    if run is not None and not rebuild and timezone.localdate(run.updated_at) == timezone.localdate(now):
        return None
    changed = journeys.update_journeys(now, rebuild=rebuild)
    update_summaries(timezone.localdate(now))
    return changed
