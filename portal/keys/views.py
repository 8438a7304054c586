"""Pages that list API keys: one's own, and the service keys that one may see. Others are as if they did not exist."""

from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.permissions import administered_tenants, current_user, without_internal
from portal.accounts.timezones import zone_of
from portal.keys import leaked_keys, queries
from portal.keys.forms import LeakedKeyForm
from portal.keys.models import ApiKey
from portal.web import posted_forms

TENANTS = 12  # to filter by; people who administer more find them by typing


@login_required
@require_safe
def key_list(request: HttpRequest) -> HttpResponse:
    """List the person's own keys; with ?ended those that no longer work."""
    context = {
        "key_page": page_of(request, queries.keys_of(current_user(request))),
        "has_services": queries.may_have_service_keys(current_user(request)),
        "zone": zone_of(current_user(request)),
    }
    return render(request, "keys/list.html", context)


@login_required
@require_safe
def service_list(request: HttpRequest) -> HttpResponse:
    """List the service keys of the tenants that the person administers, and those that they are responsible for."""
    mine = without_internal(administered_tenants(current_user(request))).filter(is_active=True)
    tenants = list(mine.order_by("name")[: TENANTS + 1])
    tenant, text = request.GET.get("tenant", ""), request.GET.get("q", "").strip()
    keys = queries.viewable_service_keys(current_user(request))
    if tenant:
        keys = keys.filter(tenant__slug=tenant)
    context = {
        "key_page": page_of(request, queries.search_keys(keys, text) if text else keys),
        "has_services": True,
        "tenants": tenants if 1 < len(tenants) <= TENANTS else [],
        "may_create": bool(tenants),
        "tenant": tenant,
        "q": text,
        "zone": zone_of(current_user(request)),
    }
    return render(request, "keys/services.html", context)


def page_of(request: HttpRequest, keys: QuerySet[ApiKey]) -> queries.KeyPage:
    """Return the page of these keys that the request is for."""
    return queries.key_page(
        keys,
        timezone.now(),
        number=request.GET.get("page"),
        ended="ended" in request.GET,
        sort=request.GET.get("sort", ""),
    )


@login_required
@never_cache
@sensitive_post_parameters("text")
@require_http_methods(["GET", "HEAD", "POST"])
def report_leaked_key(request: HttpRequest) -> HttpResponse:
    """Revoke a key that was found in the wrong place. Every person who is signed in may: every reader could use it."""
    form = LeakedKeyForm(posted_forms.posted_data(request))
    found = leaked_keys.revoke_leaked(form.cleaned_data["text"], current_user(request)) if form.is_valid() else None
    form.data = {}  # what was pasted is never sent back
    return posted_forms.render_form(request, "keys/report_leaked.html", form, {"found": found})
