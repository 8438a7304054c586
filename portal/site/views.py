"""Home, and what belongs to no noun: language, icon, the way into Django's admin."""

from operator import attrgetter
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from django.views.i18n import set_language

from modelregistry.models import ServedModel
from portal.accounts import permissions
from portal.accounts.models import User
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_among
from portal.keys import model_access, queries
from portal.keys.key_example import make_example
from portal.operations.overview import prefetch_models
from portal.quotas import request_pages
from portal.site import home as sections
from portal.usage import recent_usage
from portal.usage.records import days_of_user
from portal.use_cases import gallery
from portal.web import posted_forms, search


@login_required
@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """Show by role what needs doing first, then a field for a question, what is left, and one's keys and usage."""
    assert isinstance(request.user, User)
    own = permissions.read_own_tenants(request.user)
    tenants = [one.tenant for one in own]
    administered = sorted((one.tenant for one in own if one.is_admin), key=attrgetter("name", "pk"))
    now, zone = timezone.now(), zone_among(tenants)
    keys = queries.read_shown_fields(queries.usable_keys(request.user))
    open_ = model_access.open_to_key(keys[0]) if keys else model_access.open_to(tenants)
    operator = None
    if request.user.is_staff:  # who sees all models: those that are open are among them
        is_open = Exists(open_.filter(pk=OuterRef("pk")).order_by())
        served: list[Any] = list(prefetch_models(ServedModel.objects.annotate(is_open=is_open), aliases=False))
        operator = sections.read_operator_section(served, now)
        offered = [model_access.describe_model(model, now) for model in served if model.is_open]
    else:
        offered = model_access.available_models(open_)
    shown = administered[: sections.MOST_TENANTS]
    limits = sections.read_quotas(request.user, zone, now, tenants, keys, shown)
    slugs = {tenant.slug for tenant in administered}
    bars, quota_requests = request_pages.read_bars_and_requests(request.user, limits.own, slugs, now)
    usage = recent_usage.read_recent_usage(days_of_user(request.user), zone, now)
    context = {
        "zone": zone,
        "now": now,
        "operator": operator,
        "administered": limits.administered,
        "tenants": tenants,
        "may_ask": any(offer.task == ServedModel.Task.CHAT for offer in offered),
        "use_cases": gallery.most_helpful(request.user) if tenants else [],
        "keys": queries.rows_of(keys, now),
        "example": make_example(request, offered),
        "running": [offer for offer in offered if offer.state is model_access.Liveness.UP],
        "limits": sections.find_tightest(bars),
        "quota_requests": quota_requests,
        "tasks": sections.read_tasks(request.user, now),
        "admins": [(one.tenant, one.admins) for one in own],
        "usage": usage,
        "has_used": bool(usage.rows or usage.month["requests"]),
    }
    return render(request, "site/home.html", context)


@login_required
@never_cache
@require_safe
def search_site(request: HttpRequest) -> HttpResponse:
    """Show what this person may see of what has a text (?q=): models, people, tenants, keys, requests."""
    wanted = search.clean_query(request.GET.get("q", ""))
    only = search.kinds.get(request.GET.get("kind", ""))
    context = {
        "wanted": wanted,
        "only": only,
        "sections": search.search(current_user(request), wanted, only.name if only else ""),
        "shortest": search.SHORTEST,
    }
    return render(request, "site/search.html", context)


@posted_forms.only_posted
def switch_language(request: HttpRequest) -> HttpResponse:
    """Change the language of the pages and, for a signed-in person, of the gateway's messages about their keys."""
    chosen = posted_forms.posted_choice(request, "language", *dict(settings.LANGUAGES))
    if isinstance(request.user, User):
        request.user.language = chosen
        request.user.save(update_fields=["language"])
    return set_language(request)


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """Redirect to the icon, for pages that do not name it: Django's admin, error pages of servers in front."""
    return redirect(static("favicon.svg"))


def admin_sign_in(request: HttpRequest) -> HttpResponse:
    """Redirect the admin's own sign-in page to ours, so that there is one way in, and it is throttled."""
    if request.user.is_authenticated:
        raise PermissionDenied
    return redirect_to_login(request.GET.get("next", "/admin/"))
