"""Pages that create, change, replace and revoke API keys.

The text of a new key is in one answer and nowhere else: not in the session, not in an address, not in a log.
"""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods

from portal.accounts.models import Tenant
from portal.accounts.permissions import administered_tenants, current_user, tenant_for, without_internal
from portal.keys import end_user_secret, form_tokens, lifecycle, model_access, queries
from portal.keys.forms import (
    ChangeKeyForm,
    NewKeyForm,
    NewPersonalKeyForm,
    NewServiceKeyForm,
    RevokeForm,
    RotateForm,
)
from portal.keys.key_example import make_example
from portal.keys.models import ApiKey
from portal.web import posted_forms
from portal.web.editions import locked_if_posted
from portal.web.row_locks import lock_row

SENT_BEFORE = gettext_noop(
    "No other secret was created: this form was sent before, or the secret has changed since. A secret is shown only "
    "once. If you did not copy it, create a new one."
)
TENANTS = 300  # to choose from before a service key is created


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_key(request: HttpRequest) -> HttpResponse:
    form = NewPersonalKeyForm(current_user(request), **form_tokens.form_arguments(request))
    refusal = form_tokens.refuse_form(request, form, "keys/new.html", "keys")
    return refusal or create_key(request, form, "keys", user=current_user(request))


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_service_key(request: HttpRequest) -> HttpResponse:
    """Create a service key for the tenant ?tenant=, else for the only one that the person administers.

    If there are several, show a page to choose one first.
    """
    tenant = chosen_tenant(request)
    if tenant is None:
        tenants = without_internal(administered_tenants(current_user(request))).filter(is_active=True).order_by("name")
        return render(request, "keys/new_service_tenant.html", {"tenants": tenants[:TENANTS]})
    form = NewServiceKeyForm(tenant, current_user(request), **form_tokens.form_arguments(request))
    refusal = form_tokens.refuse_form(request, form, "keys/new_service.html", "key-services", tenant=tenant)
    if refusal:
        return refusal
    service, responsible = form.cleaned_data["name"], form.cleaned_data["responsible"]
    return create_key(request, form, "key-services", service=service, responsible=responsible)


def chosen_tenant(request: HttpRequest) -> Tenant | None:
    """Return the tenant for a new service key; None: there are several.

    Raises Http404 for a tenant that the person does not administer, and for people who administer none.
    """
    if slug := request.GET.get("tenant"):
        tenant, may_administer = tenant_for(current_user(request), slug)
        if not may_administer or not tenant.is_active:
            raise Http404
        return tenant
    tenants = list(without_internal(administered_tenants(current_user(request))).filter(is_active=True)[:2])
    if not tenants:
        raise Http404
    return tenants[0] if len(tenants) == 1 else None


@sensitive_variables("text")
def create_key(request: HttpRequest, form: NewKeyForm, back: str, **holder: Any) -> HttpResponse:
    """Create the key that `form` describes and show it; `back`: the page to go to where that is refused.

    `holder`: the arguments of `lifecycle.request_key` that say whose key it is.
    """
    try:
        key, text = lifecycle.request_key(
            **holder,
            tenant=form.cleaned_data["tenant"],
            name=form.cleaned_data["name"],
            purpose=form.cleaned_data["purpose"],
            key_class=form.cleaned_data["key_class"],
            networks=form.cleaned_data["networks"],
            takes_user_headers=form.cleaned_data["takes_user_headers"],
            loop_guard=not form.cleaned_data["without_loop_guard"],
            expires_at=form.expires_at(),
            allowed_models=form.cleaned_data["models"],
            created_by=current_user(request),
        )
    except lifecycle.KeyRefused as refusal:
        messages.error(request, refusal.sentence)
        return redirect(back)
    return show_text(request, key, text)


@sensitive_variables("text")
def show_text(request: HttpRequest, key: ApiKey, text: str) -> HttpResponse:
    """Show a new key with its text, this once."""
    context = {
        "key": key,
        "text": text,
        "zone": key.tenant.zone,
        "example": make_example(request, model_access.available_models(model_access.open_to_key(key)), text),
    }
    return render(request, "keys/created.html", context)


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_key(request: HttpRequest, prefix: str) -> HttpResponse:
    keys = queries.manageable_by(current_user(request)).filter(revoked_at=None)
    known = get_object_or_404(keys.exclude(key_class=ApiKey.Class.CANARY), prefix=prefix)
    with locked_if_posted(request, lambda: lock_row(ApiKey, known.pk)):
        key = get_object_or_404(keys, pk=known.pk)
        form = ChangeKeyForm(key, posted_forms.posted_data(request))
        if form.is_valid():
            lifecycle.change_key(key, by=current_user(request), **form.changes())
            messages.success(request, _("Saved. The change applies within 2 seconds."))
            return redirect("key", prefix)
    return posted_forms.render_form(request, "keys/edit.html", form, {"key": key})


@login_required
@never_cache
@posted_forms.only_posted
@sensitive_variables("text")
def rotate_key(request: HttpRequest, prefix: str) -> HttpResponse:
    """Replace a key and show the new one, this once. Sent again, nothing happens: a key is replaced only once."""
    key = get_object_or_404(queries.manageable_by(current_user(request)), prefix=prefix)
    form = RotateForm(request.POST)
    if not form.is_valid():
        messages.error(request, _("Choose how long the old key still works."))
        return redirect("key", prefix)
    try:
        new, text = lifecycle.rotate_key(key, form.chosen_overlap(), by=current_user(request))
    except lifecycle.KeyRefused as refusal:
        messages.error(request, refusal.sentence)
        return redirect("key", prefix)
    return show_text(request, new, text)


@login_required
@never_cache
@posted_forms.only_posted
@sensitive_variables("text")
def change_user_secret(request: HttpRequest, prefix: str) -> HttpResponse:
    """Make a secret that signs end users and show it, this once, or remove it.

    The form says which secret the new one replaces: sent again by a reload, it would replace the one just copied.
    """
    key = get_object_or_404(queries.manageable_by(current_user(request)), prefix=prefix)
    try:
        if posted_forms.posted_choice(request, "secret", "new", "none") == "none":
            end_user_secret.remove_user_secret(key, by=current_user(request))
            messages.success(request, _("The secret is removed. The change applies within 2 seconds."))
            return redirect("key", prefix)
        if request.POST.get("replaces", "") != key.user_secret_mark:
            messages.warning(request, _(SENT_BEFORE))
            return redirect("key", prefix)
        text = end_user_secret.make_user_secret(key, by=current_user(request))
    except lifecycle.KeyRefused as refusal:
        messages.error(request, refusal.sentence)
        return redirect("key", prefix)
    lines = "\n".join(end_user_secret.webui_settings(text))
    return render(request, "keys/user_secret.html", {"key": key, "text": text, "lines": lines})


@login_required
@posted_forms.only_posted
def revoke_key(request: HttpRequest, prefix: str) -> HttpResponse:
    key = get_object_or_404(queries.manageable_by(current_user(request)), prefix=prefix)
    form = RevokeForm(request.POST)
    if not form.is_valid():
        messages.error(request, " ".join([*form.errors["because"], _("The key was not revoked.")]))
        return redirect("key", prefix)
    lifecycle.revoke_key(key, because=form.cleaned_data["because"], by=current_user(request))
    messages.success(
        request,
        _("“%(name)s” (%(prefix)s…) is revoked and will stop working within 2 seconds.")
        % {"name": key.name, "prefix": key.prefix},
    )
    return redirect(reverse("keys" if key.user_id else "key-services"))
