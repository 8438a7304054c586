"""Pages that make, change, replace and revoke API keys. A new key's text is in one answer and nowhere else: not in the
session, not in an address, not in a log."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods

from portal.accounts.models import Tenant, User
from portal.accounts.permissions import administered_tenants, current_user, tenant_for
from portal.keys import form_tokens, lifecycle, model_access, queries
from portal.keys.forms import ChangeKeyForm, NewKey, NewKeyForm, NewServiceKeyForm, RevokeForm, RotateForm
from portal.keys.key_example import example
from portal.keys.models import ApiKey
from portal.web import posted_forms

# Of tenants to choose from before a service key is made.
TENANTS = 300


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_key(request: HttpRequest) -> HttpResponse:
    if request.method != "POST":
        form = NewKeyForm(current_user(request), initial={"ticket": form_tokens.new_token(request.session)})
        return render(request, "keys/new.html", {"form": form})
    form = NewKeyForm(current_user(request), request.POST)
    if not form.is_valid():
        return render(request, "keys/new.html", {"form": form})
    if not form_tokens.redeem_token(request.session, form.cleaned_data["ticket"]):
        return again(request, "keys")
    return created(request, form, user=current_user(request))


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_service_key(request: HttpRequest) -> HttpResponse:
    """For the tenant ?tenant=; without it, for the only one that I administer, else it is to be chosen first."""
    tenant = tenant_to_serve(request)
    if tenant is None:
        tenants = administered_tenants(current_user(request)).filter(is_active=True).order_by("name")
        return render(request, "keys/new_service_tenant.html", {"tenants": tenants[:TENANTS]})
    if request.method != "POST":
        form = NewServiceKeyForm(
            tenant, current_user(request), initial={"ticket": form_tokens.new_token(request.session)}
        )
        return render(request, "keys/new_service.html", {"form": form, "tenant": tenant})
    form = NewServiceKeyForm(tenant, current_user(request), request.POST)
    if not form.is_valid():
        return render(request, "keys/new_service.html", {"form": form, "tenant": tenant})
    if not form_tokens.redeem_token(request.session, form.cleaned_data["ticket"]):
        return again(request, "key-services")
    return created(request, form, service=form.cleaned_data["name"], responsible=form.cleaned_data["responsible"])


def tenant_to_serve(request: HttpRequest) -> Tenant | None:
    """None: there are several. Raises Http404 for what is not this person's to administer, and where there is none."""
    if slug := request.GET.get("tenant"):
        tenant, may_administer = tenant_for(current_user(request), slug)
        if not may_administer or not tenant.is_active:
            raise Http404
        return tenant
    tenants = list(administered_tenants(current_user(request)).filter(is_active=True)[:2])
    if not tenants:
        raise Http404
    return tenants[0] if len(tenants) == 1 else None


def again(request: HttpRequest, address: str) -> HttpResponse:
    messages.warning(
        request,
        _(
            "No further key was made: this form had been sent before, or had been open for too long. "
            "A key is shown only once; if you did not copy it, revoke it and create a new one."
        ),
    )
    return redirect(address)


@sensitive_variables("text")
def created(
    request: HttpRequest,
    form: NewKey,
    *,
    user: User | None = None,
    service: str = "",
    responsible: User | None = None,
) -> HttpResponse:
    """Make the key that was asked for and show it."""
    try:
        key, text = lifecycle.issue_key(
            tenant=form.cleaned_data["tenant"],
            user=user,
            service=service,
            responsible=responsible,
            name=form.cleaned_data["name"],
            purpose=form.cleaned_data["purpose"],
            key_class=form.cleaned_data["key_class"],
            networks=form.cleaned_data["networks"],
            takes_user_headers=form.cleaned_data["takes_user_headers"],
            expires_at=form.expires_at(),
            allowed_models=form.cleaned_data["models"],
            created_by=current_user(request),
        )
    except lifecycle.TooMany as refusal:
        messages.error(request, refusal.sentence)
        return redirect("keys" if user else "key-services")
    return shown_once(request, key, text)


@sensitive_variables("text")
def shown_once(request: HttpRequest, key: ApiKey, text: str) -> HttpResponse:
    context = {
        "key": key,
        "text": text,
        "zone": key.tenant.zone,
        "example": example(request, model_access.available_models(model_access.open_to_key(key)), text),
    }
    return render(request, "keys/created.html", context)


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_key(request: HttpRequest, prefix: str) -> HttpResponse:
    key = get_object_or_404(queries.manageable_by(current_user(request)).filter(revoked_at=None), prefix=prefix)
    form = ChangeKeyForm(key, request.POST if request.method == "POST" else None)
    if form.is_valid():
        lifecycle.change_key(key, by=current_user(request), **form.changes())
        messages.success(request, _("Saved. It holds within 2 seconds."))
        return redirect("key", prefix)
    return render(request, "keys/edit.html", {"form": form, "key": key})


@login_required
@never_cache
@posted_forms.only_posted
@sensitive_variables("text")
def rotate_key(request: HttpRequest, prefix: str) -> HttpResponse:
    """Return a successor, shown once. Sent again, nothing happens: a key is replaced one time."""
    key = get_object_or_404(queries.manageable_by(current_user(request)), prefix=prefix)
    form = RotateForm(request.POST)
    if not form.is_valid():
        messages.error(request, _("Choose how long the old key still works."))
        return redirect("key", prefix)
    try:
        new, text = lifecycle.rotate_key(key, form.time(), by=current_user(request))
    except lifecycle.AlreadyReplaced:
        messages.warning(request, _("This key has been replaced already. Its successor is named below."))
        return redirect("key", prefix)
    except lifecycle.TooMany as refusal:
        messages.error(request, refusal.sentence)
        return redirect("key", prefix)
    except lifecycle.NotAMember:
        messages.error(request, _("You no longer belong to the tenant of this key, so there is no new one."))
        return redirect("key", prefix)
    return shown_once(request, new, text)


@login_required
@posted_forms.only_posted
def revoke_key(request: HttpRequest, prefix: str) -> HttpResponse:
    key = get_object_or_404(queries.manageable_by(current_user(request)), prefix=prefix)
    form = RevokeForm(request.POST)
    if not form.is_valid():
        messages.error(request, _("The reason is too long: 200 characters at most. Nothing was revoked."))
        return redirect("key", prefix)
    lifecycle.revoke_key(key, because=form.cleaned_data["because"], by=current_user(request))
    messages.success(
        request,
        _("“%(name)s” (%(prefix)s…) is revoked and will stop working within 2 seconds.")
        % {"name": key.name, "prefix": key.prefix},
    )
    return redirect(reverse("keys" if key.user_id else "key-services"))
