"""The people of a tenant: who they are, what they use, which of them belong to it by hand."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts import membership, permissions
from portal.accounts.decorators import tenant_admin_required
from portal.accounts.models import Membership, Tenant
from portal.accounts.permissions import current_user
from portal.keys import queries
from portal.keys.models import ApiKey
from portal.quotas import administration, status
from portal.quotas.administration import QuotaTarget
from portal.quotas.models import Quota
from portal.tenants import ranking
from portal.tenants.forms import AddMemberForm, RoleForm
from portal.web import posted_forms
from portal.web.templatetags.formatting import person

PAGE = 50


@tenant_admin_required
@require_safe
def people(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    return listed(request, tenant, AddMemberForm())


@tenant_admin_required
@posted_forms.only_posted
def add(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    form = AddMemberForm(request.POST)
    if form.is_valid():
        try:
            row = membership.add_member(
                current_user(request), tenant, form.cleaned_data["username"], form.cleaned_data["role"]
            )
        except membership.MembershipRefused as refusal:
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
    page = Paginator(ranking.ranked(membership.members_of(tenant, text), used, sort), PAGE).get_page(
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


@tenant_admin_required
@require_safe
def one(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    """`pk` is the person's."""
    row = get_object_or_404(Membership.objects.select_related("user"), tenant=tenant, user=pk)
    now = timezone.now()
    keys = queries.keys_of(row.user).filter(tenant=tenant).filter(queries.is_usable())
    own, operates = QuotaTarget(tenant=tenant, user=row.user), permissions.may_operate(current_user(request))
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "membership": row,
        "used": ranking.used_by(ranking.month_of(tenant, now).filter(user=row.user), "user_id").get(
            row.user_id, ranking.Used()
        ),
        "allowances": status.allowances_of_member(tenant, row.user, now)
        + (status.allowances_everywhere(row.user, tenant.zone, now) if operates else []),
        "own": Quota.objects.filter(tenant=tenant, user=row.user).select_related("model"),
        "everywhere": Quota.objects.filter(tenant=None, user=row.user).select_related("model") if operates else [],
        "may_give": administration.may_set(current_user(request), own),
        "keys": keys[:PAGE],
        "by_hand": membership.is_by_hand(row),
        "myself": row.user == current_user(request) and not operates,
        "form": RoleForm(initial={"role": row.role}),
    }
    return render(request, "tenants/person.html", context)


@tenant_admin_required
@posted_forms.only_posted
def role(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    row = get_object_or_404(Membership.objects.select_related("user"), tenant=tenant, user=pk)
    form = RoleForm(request.POST)
    if form.is_valid():
        try:
            changed = membership.change_role(current_user(request), row, form.cleaned_data["role"])
        except membership.MembershipRefused as refusal:
            messages.error(request, refusal.sentence)
        else:
            said = _("%(person)s has the role “%(role)s” now.")
            messages.success(request, said % {"person": person(row.user), "role": changed.get_role_display()})
    return redirect("tenant-person", tenant.slug, pk)


@tenant_admin_required
@require_http_methods(["GET", "HEAD", "POST"])
def remove(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    """Ask first: it stops the person's keys."""
    row = get_object_or_404(Membership.objects.select_related("user"), tenant=tenant, user=pk)
    if request.method != "POST":
        keys = ApiKey.objects.usable().filter(tenant=tenant, user=row.user).count()
        context = {"tenant": tenant, "zone": tenant.zone, "membership": row, "keys": keys}
        return render(request, "tenants/remove.html", context)
    try:
        membership.remove_member(current_user(request), row)
    except membership.MembershipRefused as refusal:
        messages.error(request, refusal.sentence)
        return redirect("tenant-person", tenant.slug, pk)
    said = _("%(person)s does not belong to %(tenant)s any more.")
    messages.success(request, said % {"person": person(row.user), "tenant": tenant})
    return redirect("tenant-people", tenant.slug)
