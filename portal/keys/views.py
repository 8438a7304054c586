"""Pages to look at API keys: one's own, and the service keys that one may see. Another's is as if it did not exist."""

from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.tenancy import administered_tenants, me
from portal.console.clock import zone_of
from portal.keys import access, keyring
from portal.keys import found as ending
from portal.keys.example import example
from portal.keys.forms import FoundKeyForm, RevokeForm, RotateForm
from portal.keys.models import ApiKey
from portal.metering import giving, periods, wishes
from portal.metering.allowance import of_key
from portal.metering.models import UsageDay
from portal.metering.usage import total

# Of tenants to filter by; who administers more finds them by typing.
TENANTS = 12


@login_required
@require_safe
def key_list(request: HttpRequest) -> HttpResponse:
    """My own keys; those that no longer work with ?ended."""
    context = {
        "ring": asked_for(request, keyring.keys_of(me(request))),
        "has_services": keyring.has_services(me(request)),
        "zone": zone_of(me(request)),
    }
    return render(request, "keys/list.html", context)


@login_required
@require_safe
def service_list(request: HttpRequest) -> HttpResponse:
    """The service keys of the tenants that I administer, and those that I am responsible for."""
    tenants = list(administered_tenants(me(request)).filter(is_active=True).order_by("name")[: TENANTS + 1])
    tenant, text = request.GET.get("tenant", ""), request.GET.get("q", "").strip()
    keys = keyring.services(me(request))
    if tenant:
        keys = keys.filter(tenant__slug=tenant)
    context = {
        "ring": asked_for(request, keyring.like(keys, text) if text else keys),
        "has_services": True,
        "tenants": tenants if 1 < len(tenants) <= TENANTS else [],
        "may_create": bool(tenants),
        "tenant": tenant,
        "q": text,
        "zone": zone_of(me(request)),
    }
    return render(request, "keys/services.html", context)


def asked_for(request: HttpRequest, keys: QuerySet[ApiKey]) -> keyring.Ring:
    return keyring.ring(keys, timezone.now(), number=request.GET.get("page"), ended="ended" in request.GET)


@login_required
@require_safe
def key_detail(request: HttpRequest, prefix: str) -> HttpResponse:
    key = get_object_or_404(keyring.viewable(me(request)), prefix=prefix)
    now = timezone.now()
    [held] = keyring.held(ApiKey.objects.filter(pk=key.pk), now)
    month = periods.period("this-month", now, key.tenant.zone)
    context: dict[str, object] = {
        "key": held,
        "zone": key.tenant.zone,
        "this_month": total(month.of(UsageDay.objects.filter(key=key))),
        "may_manage": keyring.manageable(me(request)).filter(pk=key.pk).exists(),
        "rotate": RotateForm(),
        "revoke": RevokeForm(),
    }
    if held.works:
        offered = access.offers(access.open_to_key(key))
        context["bars"] = wishes.bars(me(request), of_key(key, now))
        context["may_give"] = giving.may_give(me(request), giving.Whose(key=key))
        context["offered"] = offered
        context["example"] = example(request, offered, chosen=request.GET.get("model", ""))
    return render(request, "keys/detail.html", context)


@login_required
@never_cache
@sensitive_post_parameters("text")
@require_http_methods(["GET", "HEAD", "POST"])
def found_key(request: HttpRequest) -> HttpResponse:
    """Somebody found a key where it must not be: whoever is signed in may end it, for it works for everybody now."""
    form = FoundKeyForm(request.POST or None)
    asked = form.is_valid()
    found = ending.end(form.cleaned_data["text"], me(request)) if asked else None
    form.data = {}  # what was pasted is never sent back
    return render(request, "keys/found.html", {"form": form, "found": found})
