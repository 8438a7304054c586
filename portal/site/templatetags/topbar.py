"""What the frame of every page shows: facts about the person in the bar on top, and the version in the footer."""

from dataclasses import dataclass

from django import template
from django.db.models import Count, Exists, FilteredRelation, OuterRef, Q, Subquery
from django.template import Context
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from portal.accounts.models import Membership, User
from portal.news.announcements import current_announcements
from portal.notifications.models import Notice
from portal.version import VERSION

register = template.Library()

MAX_UNREAD = 99  # unread notices; beyond that the exact number does not matter


@dataclass(frozen=True, slots=True, kw_only=True)
class TopbarFacts:
    """What the bar on top shows about a person."""

    unread: int  # notices
    tenants: tuple[tuple[str, str], ...]  # (short name, name) of the active ones that the person is an admin of
    has_news: bool  # whether anything is announced now, to anyone

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
    rows = list(
        User.objects.filter(pk=user.pk)
        .annotate(
            unread=Subquery(unread.values("n")),
            has_news=Exists(current_announcements(timezone.now())),
            admin_of=admin_of,
        )
        .order_by("admin_of__tenant__name")
        .values_list(
            "unread", "has_news", "admin_of__tenant__slug", "admin_of__tenant__name", "admin_of__tenant__is_active"
        )
    )
    tenants = tuple((slug, name) for _, _, slug, name, is_active in rows if is_active)
    return TopbarFacts(unread=rows[0][0] or 0 if rows else 0, has_news=bool(rows and rows[0][1]), tenants=tenants)


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
