"""Tips to people who have a key but no answer yet, or have not used models for two weeks. Only they learn of it.

At most one in two weeks, in office hours of working days, to people who belong to an active tenant and want tips, and
none to those who have been away for longer than GIVEN_UP: they know that there is something to use.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from django.core import signing
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from portal.accounts.models import Membership, User
from portal.adoption.models import COMPANY, AdoptionJourney, AdoptionRun, AdoptionTip
from portal.web import workdays
from portal.web.notify import notify

NO_CALL, AWAY = "tip-no-call", "tip-away"
BETWEEN = timedelta(days=14)  # two tips
NEW_KEY = timedelta(days=3)  # before that, people may just not have come to it
QUIET = timedelta(days=14)  # since the last active day
GIVEN_UP = timedelta(days=60)
HOURS = range(10, 16)  # of the tenant's day: mail at night is no gentle reminder
JAPAN = "Asia/Tokyo"
SALT = "tips"


def send_tips(now: datetime) -> int:
    """Notify the people who are due a tip; return how many. To be repeated every hour."""
    sent = 0
    if not is_enough_data(now):
        return sent
    for user, kind in list(find_due(now)):
        with transaction.atomic():
            notify([user], kind, f"{now:%Y-%m-%d}", path=reverse("home") if kind == NO_CALL else reverse("try"))
            AdoptionTip.objects.update_or_create(user=user, defaults={"kind": kind, "at": now})
        sent += 1
    return sent


def find_due(now: datetime) -> Iterator[tuple[User, str]]:
    """Yield the people who are due a tip, and its kind."""
    zones: dict[int, ZoneInfo] = {}
    members = Membership.objects.filter(tenant__is_active=True, user__is_active=True, user__wants_tips=True)
    for number, zone in members.order_by("-since", "-pk").values_list("user_id", "tenant__time_zone"):
        zones[number] = ZoneInfo(zone)  # of the first one
    lately = set(AdoptionTip.objects.filter(at__gt=now - BETWEEN).values_list("user_id", flat=True))
    kinds = {}
    for row in AdoptionJourney.objects.filter(scope=COMPANY, user__in=zones.keys() - lately):
        own = zones[row.user_id]
        if is_office_hour(now, own) and (kind := tip_for(row, now.astimezone(own))):
            kinds[row.user_id] = kind
    for user in User.objects.filter(pk__in=kinds, is_break_glass=False):
        yield user, kinds[user.pk]


def tip_for(row: AdoptionJourney, now: datetime) -> str:
    """Return the kind of tip that this person needs on the day of `now`; "" for none."""
    today = now.date()
    if row.answered_on is None:
        return NO_CALL if row.key_on is not None and NEW_KEY <= today - row.key_on <= GIVEN_UP else ""
    last = row.arrived_on + timedelta(days=row.active.bit_length() - 1)
    return AWAY if QUIET <= today - last <= GIVEN_UP else ""


def is_office_hour(now: datetime, zone: ZoneInfo) -> bool:
    """Return whether people work now: in Japan also by its holidays, elsewhere from Monday to Friday."""
    local = now.astimezone(zone)
    works = workdays.is_working_day(local.date()) if zone.key == JAPAN else local.weekday() < 5
    return works and local.hour in HOURS


def set_tips(person: User, *, wanted: bool) -> None:
    """Switch a person's tips on or off."""
    person.wants_tips = wanted
    person.save(update_fields=["wants_tips"])


def link_of(person: User) -> str:
    """Return the path at which this person can switch tips off without signing in."""
    return reverse("tips-by-link", args=[signing.dumps(person.pk, salt=SALT)])


def person_of_link(token: str) -> User | None:
    """Return the person that the link was made for; None for any other text. It may do nothing but switch tips."""
    try:
        number = signing.loads(token, salt=SALT)
    except signing.BadSignature:
        return None
    return User.objects.filter(pk=number, is_active=True).first()


def is_enough_data(now: datetime) -> bool:
    """Return whether journeys were made today: days that are not yet read must not count as idle."""
    run = AdoptionRun.objects.first()
    return run is not None and timezone.localdate(run.updated_at) == timezone.localdate(now)
