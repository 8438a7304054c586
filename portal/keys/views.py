"""Pages to look at API keys: one's own, and the service keys that one may see. Another's is as if it did not exist."""

from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.permissions import administered_tenants, current_user
from portal.accounts.timezones import zone_of
from portal.keys import leaked_keys, queries
from portal.keys.forms import FoundKeyForm
from portal.keys.models import ApiKey

# Of tenants to filter by; who administers more finds them by typing.
TENANTS = 12


@login_required
@require_safe
def key_list(request: HttpRequest) -> HttpResponse:
    """My own keys; those that no longer work with ?ended."""
    context = {
        "ring": asked_for(request, queries.keys_of(current_user(request))),
        "has_services": queries.has_services(current_user(request)),
        "zone": zone_of(current_user(request)),
    }
    return render(request, "keys/list.html", context)


@login_required
@require_safe
def service_list(request: HttpRequest) -> HttpResponse:
    """Return the service keys of the tenants that I administer, and those that I am responsible for."""
    tenants = list(administered_tenants(current_user(request)).filter(is_active=True).order_by("name")[: TENANTS + 1])
    tenant, text = request.GET.get("tenant", ""), request.GET.get("q", "").strip()
    keys = queries.services(current_user(request))
    if tenant:
        keys = keys.filter(tenant__slug=tenant)
    context = {
        "ring": asked_for(request, queries.search(keys, text) if text else keys),
        "has_services": True,
        "tenants": tenants if 1 < len(tenants) <= TENANTS else [],
        "may_create": bool(tenants),
        "tenant": tenant,
        "q": text,
        "zone": zone_of(current_user(request)),
    }
    return render(request, "keys/services.html", context)


def asked_for(request: HttpRequest, keys: QuerySet[ApiKey]) -> queries.KeyPage:
    return queries.key_page(keys, timezone.now(), number=request.GET.get("page"), ended="ended" in request.GET)


@login_required
@never_cache
@sensitive_post_parameters("text")
@require_http_methods(["GET", "HEAD", "POST"])
def found_key(request: HttpRequest) -> HttpResponse:
    """Somebody found a key where it must not be: whoever is signed in may end it, for it works for everybody now."""
    form = FoundKeyForm(request.POST or None)
    asked = form.is_valid()
    found = leaked_keys.revoke_leaked(form.cleaned_data["text"], current_user(request)) if asked else None
    form.data = {}  # what was pasted is never sent back
    return render(request, "keys/found.html", {"form": form, "found": found})
