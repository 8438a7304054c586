"""Which announcements a person sees, in their language; writing them, and closing a banner."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.core.exceptions import ValidationError
from django.db.models import Case, Count, Exists, F, OuterRef, Q, QuerySet, When, Window
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import get_language, pgettext
from django.utils.translation import gettext as _

from portal.accounts.models import Membership, Tenant, User
from portal.audit import tracking
from portal.news.models import Announcement, ClosedBanner
from portal.web.row_locks import lock_kind

# A time near the end of the calendar (year 9999) has no day in zones to the east, where no page could show it.
FIRST_YEAR, YEARS_AHEAD = 2000, 20
MOST_BANNERS = 3  # on a page; the others are on the page of news
Level = Announcement.Level


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadableAnnouncement:
    """An announcement in the language of the page, or in the other one if it has only that. `text`: Markdown."""

    pk: int
    level: str
    title: str
    text: str
    begins_at: datetime
    ends_at: datetime
    is_future: bool  # whether what it announces has not begun
    is_over: bool
    tenants: tuple[str, ...]  # names; none: for everyone

    @property
    def is_maintenance(self) -> bool:
        return self.level == Level.MAINTENANCE


@dataclass(frozen=True, slots=True)
class Banners:
    """The first of what is announced now, and how much of it there is."""

    shown: list[ReadableAnnouncement]
    count: int

    @property
    def after_all(self) -> int:
        """How many more there are than a wide page shows."""
        return self.count - len(self.shown)

    @property
    def after_first(self) -> int:
        """How many more there are than a narrow page shows."""
        return max(0, self.count - 1)


def visible_announcements(user: User, now: datetime) -> QuerySet[Announcement]:
    """Return what this person may read: what is or was shown to their tenants; all of it for operators."""
    if user.is_staff:
        return Announcement.objects.all()
    through = Announcement.tenants.through.objects.filter(announcement=OuterRef("pk"))
    mine = through.filter(tenant__in=Membership.objects.filter(user=user).values("tenant"))
    return Announcement.objects.filter(Q(for_everyone=True) | Exists(mine), shown_from__lte=now)


def current_announcements(now: datetime) -> QuerySet[Announcement]:
    """Return what banners show now, to anyone."""
    return Announcement.objects.filter(shown_from__lte=now, ends_at__gt=now)


def banners(user: User, now: datetime) -> Banners:
    """Return what the banners of a page show now, without news that the person closed.

    Maintenance is first, the next of it before the later one; then news, the newest first.

    Operators see those for single tenants as well, which they are responsible for. One query, of which the frame of
    every page is made.
    """
    closed = ClosedBanner.objects.filter(announcement=OuterRef("pk"), user=user)
    found = (
        (visible_announcements(user, now) & current_announcements(now))
        .exclude(Q(level=Level.INFO) & Exists(closed))
        .annotate(count=Window(Count("pk")))
        .order_by("-level", Case(When(level=Level.MAINTENANCE, then=F("begins_at"))), "-begins_at", "-pk")
    )
    rows = list(found[:MOST_BANNERS])
    return Banners([readable(one, now) for one in rows], rows[0].count if rows else 0)


def readable(row: Announcement, now: datetime, tenants: Iterable[str] = ()) -> ReadableAnnouncement:
    """Return an announcement for readers; `tenants`: the names of those that it is for."""
    ja_first = (get_language() or "ja").startswith("ja")

    def choose(ja: str, en: str) -> str:
        return (ja or en) if ja_first else (en or ja)

    return ReadableAnnouncement(
        pk=row.pk,
        level=row.level,
        title=choose(row.title_ja, row.title_en),
        text=choose(row.text_ja, row.text_en),
        begins_at=row.begins_at,
        ends_at=row.ends_at,
        is_future=row.begins_at > now,
        is_over=row.ends_at <= now,
        tenants=tuple(tenants),
    )


def lock_announcements() -> None:
    """Let others that write announcements wait for the end of this transaction."""
    lock_kind(Announcement)


def save_announcement(row: Announcement, tenants: Iterable[Tenant]) -> Announcement:
    """Save it for these tenants, or for everyone without any; the audit log has both."""
    tenants = sorted(tenants, key=lambda tenant: tenant.slug)
    before = sorted(row.tenants.values_list("slug", flat=True)) if row.pk else []
    row.for_everyone = not tenants
    row.shown_from = row.begins_at - timedelta(days=row.days_ahead)
    row.save()
    after = [tenant.slug for tenant in tenants]
    if before != after:
        row.tenants.set(tenants)
        tracking.record_event(
            "announcement.tenants", row, "announcement", before={"tenants": before}, after={"tenants": after}
        )
    return row


def check_year(value: datetime) -> None:
    """Raise ValidationError for a year that no announcement is about."""
    if not FIRST_YEAR <= value.year <= timezone.now().year + YEARS_AHEAD:
        raise ValidationError(
            _("Choose a time within the next %(years)d years."), code="year", params={"years": YEARS_AHEAD}
        )


def check_announcement(row: Announcement, tenants: Iterable[Tenant]) -> None:
    """Raise ValidationError, by fields, for what cannot be announced. Times that are missing are not looked at.

    Times in sentences are in the active time zone.
    """
    errors: dict[str, ValidationError] = {}
    if not (row.title_ja or row.title_en):
        errors["title_ja"] = ValidationError(_("Give a title in one of the languages."), code="no-title")
    if row.begins_at and row.ends_at:
        if row.ends_at <= row.begins_at:
            sentence = _("It would end before it begins. Choose a later end.")
            errors["ends_at"] = ValidationError(sentence, code="ends-before-it-begins")
        elif other := find_overlap(row, tenants):
            errors["begins_at"] = _describe_overlap(other)
    if errors:
        raise ValidationError(errors)


def _describe_overlap(other: Announcement) -> ValidationError:
    begin, end = (
        date_format(localtime(time), pgettext("time of this year", "j M, H:i"))
        for time in (other.begins_at, other.ends_at)
    )
    sentence = _("“%(title)s” announces maintenance from %(begin)s to %(end)s. Change that one, or these times.")
    return ValidationError(sentence, code="overlaps", params={"title": str(other), "begin": begin, "end": end})


def find_overlap(row: Announcement, tenants: Iterable[Tenant]) -> Announcement | None:
    """Return other maintenance at the same time that the same people would read of; None for news."""
    if row.level != Level.MAINTENANCE:
        return None
    others = Announcement.objects.filter(level=Level.MAINTENANCE, begins_at__lt=row.ends_at, ends_at__gt=row.begins_at)
    tenants = list(tenants)
    if tenants:
        others = others.filter(Q(for_everyone=True) | Q(tenants__in=tenants))
    return others.exclude(pk=row.pk).first()


def close_banner(user: User, announcement: Announcement) -> None:
    """Show this news no longer in this person's banners; a repetition changes nothing."""
    ClosedBanner.objects.bulk_create([ClosedBanner(announcement=announcement, user=user)], ignore_conflicts=True)
