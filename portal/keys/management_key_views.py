"""Pages of one's own management keys. Those of others are as if they did not exist."""

from dataclasses import dataclass
from typing import Self

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
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
class ManagementKeyRow:
    """A key as pages show it, with the labels of its scopes."""

    key: ManagementKey
    scopes: tuple[str | Promise, ...]

    @classmethod
    def of(cls, key: ManagementKey) -> Self:
        labels = tuple(SCOPES[name].label if name in SCOPES else name for name in key.scopes)
        return cls(key=key, scopes=labels)


@login_required
@require_safe
def key_list(request: HttpRequest) -> HttpResponse:
    page = Paginator(management_keys.keys_of(current_user(request)), PER_PAGE).get_page(request.GET.get("page"))
    context = {
        "has_services": queries.may_have_service_keys(current_user(request)),
        "page": page,
        "rows": [ManagementKeyRow.of(key) for key in page],
        "zone": zone_of(current_user(request)),
    }
    return render(request, "management_keys/keys.html", context)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_key(request: HttpRequest) -> HttpResponse:
    form = NewManagementKeyForm(current_user(request), **form_tokens.form_arguments(request))
    refusal = form_tokens.refuse_form(request, form, "management_keys/new_key.html", "management-keys")
    return refusal or create_key(request, form)


@sensitive_variables("text")
def create_key(request: HttpRequest, form: NewManagementKeyForm) -> HttpResponse:
    """Create the key that `form` describes and show it with its text, this once."""
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
        "row": ManagementKeyRow.of(key),
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
        request, _("“%(name)s” (%(prefix)s…) is revoked and no longer works.") % {"name": key.name, "prefix": prefix}
    )
    return redirect("management-keys")
