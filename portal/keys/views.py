"""Pages of one's own API keys. A person sees their own keys only; another's is as if it did not exist."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from portal.accounts.models import User
from portal.api import keys as management_keys
from portal.console.clock import zone_of
from portal.keys import access, issuing, keyring, once
from portal.keys.example import example
from portal.keys.forms import FoundKeyForm, NewKeyForm
from portal.metering import periods
from portal.metering.usage import total, visible_to


def me(request: HttpRequest) -> User:
    """The person who is signed in (views here are all behind login_required)."""
    assert isinstance(request.user, User)
    return request.user


@login_required
@require_GET
def key_list(request: HttpRequest) -> HttpResponse:
    keys = keyring.held(keyring.keys_of(me(request)), timezone.now())
    return render(
        request,
        "keys/list.html",
        {
            "working": [key for key in keys if key.works],
            "ended": [key for key in keys if not key.works],
            "zone": zone_of(me(request)),
        },
    )


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_key(request: HttpRequest) -> HttpResponse:
    if request.method != "POST":
        form = NewKeyForm(me(request), initial={"ticket": once.ticket(request.session)})
        return render(request, "keys/new.html", {"form": form})
    form = NewKeyForm(me(request), request.POST)
    if not form.is_valid():
        return render(request, "keys/new.html", {"form": form})
    if not once.redeem(request.session, form.cleaned_data["ticket"]):
        messages.warning(
            request,
            _(
                "No further key was made: this form had been sent before, or had been open for too long. "
                "A key is shown only once; if you did not copy it, revoke it and create a new one."
            ),
        )
        return redirect("keys")
    return created(request, form)


@sensitive_variables("text")
def created(request: HttpRequest, form: NewKeyForm) -> HttpResponse:
    """Makes the key and shows it, here and nowhere else: not in the session, not in an address, not in a log."""
    key, text = issuing.issue(
        tenant=form.cleaned_data["tenant"],
        user=me(request),
        name=form.cleaned_data["name"],
        expires_at=form.expires_at(),
        allowed_models=form.cleaned_data["models"],
        created_by=me(request),
    )
    context = {
        "key": key,
        "text": text,
        "zone": key.tenant.zone,
        "example": example(request, access.offers(access.open_to_key(key)), text),
    }
    return render(request, "keys/created.html", context)


@login_required
@require_GET
def key_detail(request: HttpRequest, prefix: str) -> HttpResponse:
    keys = keyring.keys_of(me(request))
    key = get_object_or_404(keys, prefix=prefix)
    now = timezone.now()
    [held] = keyring.held(keys.filter(pk=key.pk), now)
    month = periods.period("this-month", now, key.tenant.zone)
    context: dict[str, object] = {
        "key": held,
        "zone": key.tenant.zone,
        "this_month": total(month.of(visible_to(me(request)).filter(key=key))),
    }
    if held.works:
        context["example"] = example(request, access.offers(access.open_to_key(key)))
    return render(request, "keys/detail.html", context)


@login_required
@never_cache
@sensitive_post_parameters("text")
@require_http_methods(["GET", "HEAD", "POST"])
def found_key(request: HttpRequest) -> HttpResponse:
    """Somebody found a key where it must not be: whoever is signed in may end it, for it works for everybody now."""
    form = FoundKeyForm(request.POST or None)
    asked = form.is_valid()
    found, strange = issuing.found_in(form.cleaned_data["text"]) if asked else ([], 0)
    ended = [key for key in found if key.revoked_at is None]
    for key in ended:
        issuing.revoke(key, because=issuing.LEAKED, by=me(request))
    managing, strange_managing = management_keys.found_in(form.cleaned_data["text"]) if asked else ([], 0)
    ended_managing = [key for key in managing if key.revoked_at is None]
    for managing_key in ended_managing:
        management_keys.revoke_found(managing_key)
    form.data = {}  # what was pasted is never sent back
    context = {
        "form": form,
        "asked": asked,
        "ended": ended,
        "ended_managing": ended_managing,
        "known": [key for key in (*found, *managing) if key not in ended and key not in ended_managing],
        "strange": strange + strange_managing,
    }
    return render(request, "keys/found.html", context)


@login_required
@require_POST
def revoke_key(request: HttpRequest, prefix: str) -> HttpResponse:
    key = get_object_or_404(keyring.keys_of(me(request)), prefix=prefix)
    issuing.revoke(key, by=me(request))
    messages.success(
        request,
        _("“%(name)s” (%(prefix)s…) is revoked and will stop working within 2 seconds.")
        % {"name": key.name, "prefix": key.prefix},
    )
    return redirect("keys")
