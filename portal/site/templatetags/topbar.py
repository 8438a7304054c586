"""What the frame of every page shows: facts about the person in the bar on top, and the version in the footer."""

from dataclasses import dataclass
from zoneinfo import ZoneInfo

from django import template
from django.db.models import Count, Exists, FilteredRelation, OuterRef, Q, Subquery
from django.template import Context
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from modelregistry.version import VERSION
from portal.accounts.models import Membership, Tenant, User
from portal.accounts.timezones import zone_named
from portal.news.announcements import current_announcements
from portal.notifications.models import Notice
from portal.web.templatetags.formatting import in_zone

register = template.Library()

MAX_UNREAD = 99  # unread notices; beyond that the exact number does not matter


@dataclass(frozen=True, slots=True, kw_only=True)
class TopbarFacts:
    """What the bar on top shows about a person."""

    unread: int  # notices
    tenants: tuple[tuple[str, str], ...]  # (short name, name) of the active ones that the person is an admin of
    has_news: bool  # whether anything is announced now, to anyone
    zone: ZoneInfo  # the person's own, see `portal.accounts.timezones`

    @property
    def unread_short(self) -> str:
        return f"{MAX_UNREAD}+" if self.unread > MAX_UNREAD else str(self.unread)


@register.simple_tag
def version() -> str:
    return VERSION


@register.simple_tag
def topbar_facts(user: User) -> TopbarFacts:
    """Return the facts by one query, because every page needs them."""
    unread = Notice.objects.filter(user=OuterRef("pk"), read_at=None).order_by().values("user").annotate(n=Count("pk"))
    admin_of = FilteredRelation("memberships", condition=Q(memberships__role=Membership.Role.ADMIN))
    home = Tenant.objects.filter(memberships__user=OuterRef("pk"), is_active=True)
    rows = list(
        User.objects.filter(pk=user.pk)
        .annotate(
            unread=Subquery(unread.values("n")),
            has_news=Exists(current_announcements(timezone.now())),
            zone=Subquery(home.values("time_zone")[:1]),
            admin_of=admin_of,
        )
        .order_by("admin_of__tenant__name")
        .values_list(
            "unread",
            "has_news",
            "zone",
            "admin_of__tenant__slug",
            "admin_of__tenant__name",
            "admin_of__tenant__is_active",
        )
    )
    tenants = tuple((slug, name) for _, _, _, slug, name, is_active in rows if is_active)
    number, has_news, zone = rows[0][:3] if rows else (0, False, None)
    return TopbarFacts(unread=number or 0, has_news=has_news, zone=zone_named(zone), tenants=tenants)


@register.inclusion_tag("site/_zone.html", takes_context=True)
def zone_note(context: Context, own: ZoneInfo) -> dict[str, object]:
    """Return what says in which zone the times of a page are, if that is not the reader's own."""
    zone = context.get("zone")
    now = timezone.now()
    if zone is None or zone == own:
        return {"zone": None}
    return {"zone": zone, "own": own, "now": f"{in_zone(now, zone):%H:%M}", "own_now": f"{in_zone(now, own):%H:%M}"}


@register.simple_tag(takes_context=True)
def nav_link(context: Context, url: str, label: str, also: str = "") -> SafeString:
    """Return a link to a section of the site, marked when the page is in it; nothing if `url` is empty.

    `also`: another address whose pages belong to the section.
    """
    if not url:
        return SafeString()
    path = context["request"].path
    here = path == url or (url != "/" and path.startswith(url)) or bool(also and path.startswith(also))
    return format_html('<a href="{}"{}>{}</a>', url, SafeString(' aria-current="page"' if here else ""), label)
