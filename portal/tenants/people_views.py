"""The people of a tenant: who they are, what they use, which of them belong to it by hand."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts import membership, tenancy
from portal.accounts.models import Membership, Tenant
from portal.accounts.tenancy import me
from portal.console import posted
from portal.console.templatetags.figures import person
from portal.keys import keyring
from portal.keys.models import ApiKey
from portal.metering import allowance, giving
from portal.metering.giving import Whose
from portal.metering.models import Quota
from portal.tenants import ranking
from portal.tenants.forms import AddMemberForm, RoleForm
from portal.tenants.gates import for_admins

PAGE = 50


@for_admins
@require_safe
def people(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    return listed(request, tenant, AddMemberForm())


@for_admins
@posted.only
def add(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    form = AddMemberForm(request.POST)
    if form.is_valid():
        try:
            row = membership.add(me(request), tenant, form.cleaned_data["username"], form.cleaned_data["role"])
        except membership.Refused as refusal:
            form.add_error("username", refusal.sentence)
        else:
            messages.success(
                request, _("%(person)s belongs to %(tenant)s now.") % {"person": row.user, "tenant": tenant}
            )
            return redirect("tenant-people", tenant.slug)
    return listed(request, tenant, form)


def listed(request: HttpRequest, tenant: Tenant, form: AddMemberForm) -> HttpResponse:
    now = timezone.now()
    text, sort = request.GET.get("q", "").strip(), request.GET.get("sort", "")
    sort = sort if sort in ranking.SORTS else ranking.SORTS[0]
    used = ranking.used_by(ranking.month_of(tenant, now), "user_id")
    page = Paginator(ranking.ranked(membership.members(tenant, text), used, sort), PAGE).get_page(
        request.GET.get("page")
    )
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "q": text,
        "sort": sort,
        "page": page,
        "members": ranking.members(tenant, list(page), used, now),
        "form": form,
    }
    return render(request, "tenants/people.html", context)


@for_admins
@require_safe
def one(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    """`pk` is the person's."""
    row = get_object_or_404(Membership.objects.select_related("user"), tenant=tenant, user=pk)
    now = timezone.now()
    keys = keyring.keys_of(row.user).filter(tenant=tenant).filter(keyring.is_usable())
    own, operates = Whose(tenant=tenant, user=row.user), tenancy.may_operate(me(request))
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "membership": row,
        "used": ranking.used_by(ranking.month_of(tenant, now).filter(user=row.user), "user_id").get(
            row.user_id, ranking.Used()
        ),
        "allowances": allowance.of_member(tenant, row.user, now)
        + (allowance.everywhere(row.user, tenant.zone, now) if operates else []),
        "own": Quota.objects.filter(tenant=tenant, user=row.user).select_related("model"),
        "everywhere": Quota.objects.filter(tenant=None, user=row.user).select_related("model") if operates else [],
        "may_give": giving.may_give(me(request), own),
        "keys": keys[:PAGE],
        "by_hand": membership.is_by_hand(row),
        "myself": row.user == me(request) and not operates,
        "form": RoleForm(initial={"role": row.role}),
    }
    return render(request, "tenants/person.html", context)


@for_admins
@posted.only
def role(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    row = get_object_or_404(Membership.objects.select_related("user"), tenant=tenant, user=pk)
    form = RoleForm(request.POST)
    if form.is_valid():
        try:
            changed = membership.change_role(me(request), row, form.cleaned_data["role"])
        except membership.Refused as refusal:
            messages.error(request, refusal.sentence)
        else:
            said = _("%(person)s has the role “%(role)s” now.")
            messages.success(request, said % {"person": person(row.user), "role": changed.get_role_display()})
    return redirect("tenant-person", tenant.slug, pk)


@for_admins
@require_http_methods(["GET", "HEAD", "POST"])
def remove(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    """Asks first: it stops the person's keys."""
    row = get_object_or_404(Membership.objects.select_related("user"), tenant=tenant, user=pk)
    if request.method != "POST":
        keys = ApiKey.objects.usable().filter(tenant=tenant, user=row.user).count()
        context = {"tenant": tenant, "zone": tenant.zone, "membership": row, "keys": keys}
        return render(request, "tenants/remove.html", context)
    try:
        membership.remove(me(request), row)
    except membership.Refused as refusal:
        messages.error(request, refusal.sentence)
        return redirect("tenant-person", tenant.slug, pk)
    said = _("%(person)s does not belong to %(tenant)s any more.")
    messages.success(request, said % {"person": person(row.user), "tenant": tenant})
    return redirect("tenant-people", tenant.slug)
