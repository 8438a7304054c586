"""Pages of one's own management keys. Another's is as if it did not exist."""

from dataclasses import dataclass
from datetime import datetime

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.keys import form_tokens, management_keys, queries
from portal.keys.management_key_forms import NewManagementKeyForm
from portal.keys.models import ManagementKey
from portal.web import posted_forms
from portal.web.addresses import base_address
from portal.web.rest.scopes import SCOPES

PER_PAGE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A key as the list shows it. `state`: "works", "expired" or "revoked"."""

    key: ManagementKey
    state: str
    scopes: tuple[str | Promise, ...]


def row(key: ManagementKey, now: datetime) -> Row:
    expired = key.expires_at is not None and key.expires_at <= now
    state = "revoked" if key.revoked_at else "expired" if expired else "works"
    labels = tuple(SCOPES[name].label if name in SCOPES else name for name in key.scopes)
    return Row(key=key, state=state, scopes=labels)


@login_required
@require_safe
def key_list(request: HttpRequest) -> HttpResponse:
    now = timezone.now()
    page = Paginator(management_keys.keys_of(current_user(request)), PER_PAGE).get_page(request.GET.get("page"))
    context = {
        "has_services": queries.has_services(current_user(request)),
        "page": page,
        "rows": [row(key, now) for key in page],
        "zone": zone_of(current_user(request)),
    }
    return render(request, "management_keys/keys.html", context)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_key(request: HttpRequest) -> HttpResponse:
    if request.method != "POST":
        form = NewManagementKeyForm(current_user(request), initial={"ticket": form_tokens.new_token(request.session)})
        return render(request, "management_keys/new_key.html", {"form": form})
    form = NewManagementKeyForm(current_user(request), request.POST)
    if not form.is_valid():
        return render(request, "management_keys/new_key.html", {"form": form})
    if not form_tokens.redeem_token(request.session, form.cleaned_data["ticket"]):
        messages.warning(
            request,
            _(
                "No further key was made: this form had been sent before, or had been open for too long. "
                "A key is shown only once; if you did not copy it, revoke it and create a new one."
            ),
        )
        return redirect("management-keys")
    return created(request, form)


@sensitive_variables("text")
def created(request: HttpRequest, form: NewManagementKeyForm) -> HttpResponse:
    """Make the key and show it, here and nowhere else."""
    try:
        key, text = management_keys.issue_management_key(
            user=current_user(request),
            name=form.cleaned_data["name"],
            scopes_=form.cleaned_data["scopes"],
            expires_at=form.expires_at(),
        )
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
        return redirect("management-keys")
    context = {
        "row": row(key, timezone.now()),
        "text": text,
        "zone": zone_of(current_user(request)),
        "call": f'curl -H "Authorization: Bearer {text}" {base_address(request)}/api/v1/me/',
    }
    return render(request, "management_keys/created.html", context)


@login_required
@posted_forms.only_posted
def revoke_key(request: HttpRequest, prefix: str) -> HttpResponse:
    key = get_object_or_404(management_keys.keys_of(current_user(request)), prefix=prefix)
    management_keys.revoke_management_key(current_user(request), key)
    messages.success(
        request, _("“%(name)s” (%(prefix)s…) is revoked; it no longer works.") % {"name": key.name, "prefix": prefix}
    )
    return redirect("management-keys")
