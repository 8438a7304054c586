"""Keep AdoptionJourney up to date, from sums and events that are kept for good. May be repeated at any time.

What counts as what:
- Arrival in the company is the first sign-in, key or answer, whichever is earliest. Arrival in a tenant is the same,
  but not before the person belonged to it, unless an answer or key there is older than the membership (which may have
  been ended and begun again). People who never signed in nor called have not arrived.
- A day is active if a request was answered to its end on it, by `UsageDay`: of the calendar of the key's tenant.
  Service keys belong to no person, so their usage is no person's step. The company's days are those of all tenants.
- A person of two tenants has a row in each and one in the company's, so tenants may add up to more than the company.
- Who moved to another tenant begins there, and stays in the counts of the first one with what was done there.
- Leavers stay with what they did: otherwise the weeks would only count those who stayed. People whose accounts are
  deleted are not counted at all, since nothing says when they arrived; nor are the account for emergencies and the
  canary.
- Records may be pruned, sums by day are not, so arrivals reach back to the first day that was metered. Where sign-ins
  were not yet recorded, the last sign-in counts as the first one, if no key and no answer is older.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db import transaction
from django.db.models import F, Min, QuerySet, Sum
from django.utils import timezone

from portal.accounts.models import Membership, Tenant, User
from portal.adoption import channels
from portal.adoption.models import COMPANY, AdoptionJourney, AdoptionRun
from portal.audit.models import AuditEvent
from portal.keys.canary_key import TENANT as CANARY_TENANT
from portal.keys.models import ApiKey
from portal.usage.models import UsageClientDay, UsageDay

EPOCH = date(2000, 1, 1).toordinal()  # nothing was metered before; bit 0 of days in memory
OVERLAP = timedelta(days=14)  # days read again: usage waits in a gateway's spool while the database is away
REBUILD = timedelta(days=7)  # after which all is read again, as operators may record lines that were set aside
ROWS = 500  # written by one statement
COLUMNS = ("arrived_on", "signed_in_at", "key_on", "answered_on", "channel", "days")
# Of a request that an engine answered to its end, as `report.UsageSums.answers`.
ANSWERS = F("requests") - F("aborted") - F("interrupted") - F("failed") - F("refused")
RUN = 1  # the number of the only AdoptionRun
Place = tuple[int, int]  # (user, scope)


@dataclass(slots=True)
class Sources:
    """What journeys are made from, by (user, tenant) or user. Days are bits from EPOCH on."""

    zones: dict[int, ZoneInfo]
    people: set[int]
    signed_in: dict[int, datetime] = field(default_factory=dict)
    since: dict[Place, datetime] = field(default_factory=dict)
    keys: dict[Place, datetime] = field(default_factory=dict)
    active: dict[Place, int] = field(default_factory=dict)


def update_journeys(now: datetime, *, rebuild: bool = False) -> int:
    """Read what is new, or everything once a week and with `rebuild`; return how many rows changed.

    Ten queries, and for each first day of a person who is new two.
    """
    run = AdoptionRun.objects.first()
    whole = rebuild or run is None or now - run.rebuilt_at >= REBUILD
    since = None if whole or run is None else timezone.localdate(run.updated_at) - OVERLAP
    with transaction.atomic():
        known = {(one.user_id, one.scope): one for one in AdoptionJourney.objects.all()}
        sources = _read_sources(known, since, now)
        rows = {**_tenant_rows(sources)}
        rows.update(_company_rows(sources, rows))
        for place, row in rows.items():
            _keep_earlier(row, known.get(place))
        _find_channels(rows, known)
        changed = [row for place, row in rows.items() if place not in known or _differs(row, known[place])]
        AdoptionJourney.objects.bulk_create(
            changed, ROWS, update_conflicts=True, unique_fields=["user", "scope"], update_fields=COLUMNS
        )
        # Rows of tenants that are gone; those of people go with them.
        AdoptionJourney.objects.exclude(scope__in=[COMPANY, *sources.zones]).delete()
        rebuilt = now if whole or run is None else run.rebuilt_at
        AdoptionRun.objects.update_or_create(pk=RUN, defaults={"updated_at": now, "rebuilt_at": rebuilt})
    return len(changed)


def _read_sources(known: dict[Place, AdoptionJourney], since: date | None, now: datetime) -> Sources:
    zones = {one.pk: one.zone for one in Tenant.objects.exclude(slug=CANARY_TENANT)}
    users = User.objects.filter(is_break_glass=False).values_list("pk", "last_login")
    found = Sources(zones=zones, people={pk for pk, _ in users})
    first = {one.user_id: one.signed_in_at for one in known.values() if one.scope == COMPANY}
    began = _first_sign_ins(since)
    for pk, last in users:
        moments = [at for at in (first.get(pk), began.get(pk)) if at is not None] or ([last] if last else [])
        if moments:
            found.signed_in[pk] = min(moments)
    members = Membership.objects.filter(user__in=users.values("pk"), tenant__in=zones)
    found.since = {(user, tenant): at for user, tenant, at in members.values_list("user", "tenant", "since")}
    keys = ApiKey.objects.filter(user__isnull=False, tenant__in=zones).order_by()
    for user, tenant, at in keys.values_list("user", "tenant").annotate(first=Min("created_at")):
        if user in found.people:
            found.keys[user, tenant] = at
    if since is not None:
        for place, one in known.items():
            if one.scope != COMPANY and one.active:
                found.active[place] = one.active << (one.arrived_on.toordinal() - EPOCH)
    _add_days(found, active_days(since), timezone.localdate(now) + timedelta(days=1))
    return found


def _first_sign_ins(since: date | None) -> dict[int, datetime]:
    events = AuditEvent.objects.filter(action="session.begin", actor__isnull=False).order_by()
    if since is not None:
        events = events.filter(at__gte=datetime.combine(since, time(), timezone.get_default_timezone()))
    return dict(events.values_list("actor_id").annotate(first=Min("at")))


def active_days(since: date | None) -> QuerySet[Any]:
    """Return the rows (user, tenant, day, answers) of days on which a person had an answer, from `since` on."""
    days = UsageDay.objects.filter(user__isnull=False)
    if since is not None:
        days = days.filter(day__gte=since)
    return (
        days.order_by().values_list("user_id", "tenant_id", "day").annotate(answers=Sum(ANSWERS)).filter(answers__gt=0)
    )


def _add_days(found: Sources, rows: Iterable[tuple[int, int, date, int]], last: date) -> None:
    for user, tenant, day, _answers in rows:
        bit = day.toordinal() - EPOCH
        # A clock that was never set says 1970, one that is ahead the next year.
        if user in found.people and tenant in found.zones and 0 <= bit <= last.toordinal() - EPOCH:
            found.active[user, tenant] = found.active.get((user, tenant), 0) | 1 << bit


def _tenant_rows(found: Sources) -> dict[Place, AdoptionJourney]:
    rows = {}
    for user, tenant in found.since.keys() | found.keys.keys() | found.active.keys():
        place, zone = (user, tenant), found.zones[tenant]
        key_on = _day_of(found.keys.get(place), zone)
        signed_in, since = _day_of(found.signed_in.get(user), zone), _day_of(found.since.get(place), zone)
        came = [max(signed_in, since)] if signed_in and since else []
        answered_on = _first_day(found.active.get(place, 0))
        came += [day for day in (key_on, answered_on) if day]
        if came:
            rows[place] = _make_row(place, min(came), key_on, found.active.get(place, 0))
    return rows


def _company_rows(found: Sources, of_tenants: dict[Place, AdoptionJourney]) -> dict[Place, AdoptionJourney]:
    own: dict[int, list[AdoptionJourney]] = defaultdict(list)
    for (user, _tenant), row in of_tenants.items():
        own[user].append(row)
    rows, zone = {}, ZoneInfo(timezone.get_default_timezone_name())
    for user in found.people & (found.signed_in.keys() | own.keys()):
        came = [row.arrived_on for row in own[user]]
        signed_in = _day_of(found.signed_in.get(user), zone)
        days = 0
        for row in own[user]:
            days |= found.active.get((user, row.scope), 0)
        keys = [row.key_on for row in own[user] if row.key_on]
        row = _make_row(
            (user, COMPANY), min([*came, *([signed_in] if signed_in else [])]), min(keys, default=None), days
        )
        row.signed_in_at = found.signed_in.get(user)
        rows[user, COMPANY] = row
    return rows


def _make_row(place: Place, arrived: date, key_on: date | None, days: int) -> AdoptionJourney:
    user, scope = place
    answered = _first_day(days)
    # Who was answered had a key, whether or not it still exists.
    key_on = min((day for day in (key_on, answered) if day), default=None)
    shifted = days >> (arrived.toordinal() - EPOCH)
    return AdoptionJourney(
        user_id=user,
        scope=scope,
        arrived_on=arrived,
        key_on=key_on,
        answered_on=answered,
        days=f"{shifted:x}" if days else "",
    )


def _day_of(at: datetime | None, zone: ZoneInfo) -> date | None:
    return at.astimezone(zone).date() if at else None


def _first_day(days: int) -> date | None:
    return date.fromordinal(EPOCH + (days & -days).bit_length() - 1) if days else None


def _keep_earlier(row: AdoptionJourney, known: AdoptionJourney | None) -> None:
    """Keep what was found once: an unused playground key is deleted after a day, a membership may end."""
    if known is None:
        return
    if known.key_on and (row.key_on is None or known.key_on < row.key_on):
        row.key_on = known.key_on
    if known.arrived_on < row.arrived_on:
        shift = (row.arrived_on - known.arrived_on).days
        row.arrived_on, row.days = known.arrived_on, f"{row.active << shift:x}" if row.days else ""


def _differs(row: AdoptionJourney, known: AdoptionJourney) -> bool:
    return any(getattr(row, name) != getattr(known, name) for name in COLUMNS)


def _find_channels(rows: dict[Place, AdoptionJourney], known: dict[Place, AdoptionJourney]) -> None:
    """Set the channel of each row with an answer: that of most answers on its first day."""
    due: dict[date, list[AdoptionJourney]] = defaultdict(list)
    for place, row in rows.items():
        before = known.get(place)
        if before is not None and before.channel and before.answered_on == row.answered_on:
            row.channel = before.channel
        elif row.answered_on is not None:
            due[row.answered_on].append(row)
    for day, those in due.items():
        answers = _answers_by_channel(day, {row.user_id for row in those})
        for row in those:
            votes: dict[str, int] = defaultdict(int)
            for tenant, channel, number in answers[row.user_id]:
                if row.scope in (COMPANY, tenant):
                    votes[channel] += number
            row.channel = channels.most_used(votes) if votes else channels.UNKNOWN


def _answers_by_channel(day: date, users: set[int]) -> dict[int, list[tuple[int, str, int]]]:
    """Return (tenant, channel, answers) of a day, by user. Three queries."""
    counted: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for key, client, number in UsageClientDay.objects.filter(day=day, user__in=users, answers__gt=0).values_list(
        "key_id", "client_class", "answers"
    ):
        counted[key].append((client, number))
    days = UsageDay.objects.filter(day=day, user__in=users).order_by()
    sums = list(days.values_list("user_id", "tenant_id", "key_id").annotate(answers=Sum(ANSWERS)).filter(answers__gt=0))
    names = {one.pk: one for one in ApiKey.objects.filter(pk__in=[key for _, _, key, _ in sums])}
    found: dict[int, list[tuple[int, str, int]]] = defaultdict(list)
    for user, tenant, key, number in sums:
        row = names.get(key)
        # An older version counted no classes.
        for client, answers in counted.get(key) or [("", number)]:
            channel = channels.channel_of(
                client, is_playground=bool(row and row.is_playground), key_name=row.name if row else ""
            )
            found[user].append((tenant, channel, answers))
    return found
