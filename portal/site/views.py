"""Home, the catalogue of models, and the page for trying one."""

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.templatetags.static import static
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_safe
from django.views.i18n import set_language

from modelregistry import routes
from portal.accounts import permissions
from portal.accounts.models import User
from portal.accounts.permissions import own_tenants
from portal.accounts.timezones import zone_of
from portal.keys import lifecycle, model_access, playground, playground_models, queries
from portal.keys.code_samples import make_samples
from portal.keys.key_example import base_url, make_example
from portal.quotas import administration, request_pages
from portal.quotas.status import allowances
from portal.usage import recent_usage
from portal.usage.records import days_of_user
from portal.web import posted_forms


@login_required
@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """Show a person's keys, how to call, their usage and what is left of their quotas."""
    assert isinstance(request.user, User)
    now, zone = timezone.now(), zone_of(request.user)
    tenants = list(own_tenants(request.user))
    newest = queries.usable_keys(request.user).first()
    offered = model_access.available_models(
        model_access.open_to_key(newest) if newest else model_access.open_to(tenants)
    )
    context = {
        "zone": zone,
        "tenants": tenants,
        "keys": queries.key_rows(queries.usable_keys(request.user), now),
        "example": make_example(request, offered),
        "running": [offer for offer in offered if offer.state is model_access.Liveness.UP],
        "bars": request_pages.quota_bars(request.user, allowances(request.user, zone, now)),
        "quota_requests": request_pages.requests_of(request.user, now),
        "waiting": administration.waiting_in(request.user),
        "admins": permissions.admins_by_tenant(tenants),
        "usage": recent_usage.read_recent_usage(days_of_user(request.user), zone, now),
    }
    return render(request, "site/home.html", context)


@login_required
@require_safe
def models(request: HttpRequest) -> HttpResponse:
    """List the models that this person may call; all of them for operators."""
    assert isinstance(request.user, User)
    everything = routes.offered_models()
    offered = model_access.available_models(
        everything if request.user.is_staff else model_access.open_to(own_tenants(request.user))
    )
    url = base_url(request)
    offered.sort(key=model_access.sort_key)
    context = {"models": [(offer, make_samples(offer, base_url=url)) for offer in offered], "base_url": url}
    return render(request, "site/models.html", context)


@login_required
@never_cache
@require_safe
def try_it(request: HttpRequest) -> HttpResponse:
    """Show a page to converse with a model.

    The browser talks to the gateway: messages never pass through here.
    """
    assert isinstance(request.user, User)
    tenants = list(own_tenants(request.user))
    context = {
        "tenants": tenants,
        "choices": playground_models.model_choices(tenants),
        "chosen": request.GET.get("model", ""),
        "base_url": base_url(request),
        "answer": playground_models.ANSWER,
        # Japanese if not chosen, as in gateways: a page in the same language can show their messages unchanged.
        "gateway_language": request.user.language or "ja",
    }
    return render(request, "site/try.html", context)


@login_required
@never_cache
@posted_forms.only_posted
@sensitive_variables("text")
def try_key(request: HttpRequest, slug: str) -> HttpResponse:
    """Return the key with which the page calls the gateway in the name of the signed-in person."""
    assert isinstance(request.user, User)
    tenant = get_object_or_404(own_tenants(request.user), slug=slug)
    try:
        text, expires_at = playground.renew_key(request.user, tenant, timezone.now())
    except lifecycle.NotAMember as error:
        raise Http404 from error
    return JsonResponse({"key": text, "expires_at": expires_at})


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
