"""The people of a tenant: who they are, what they use, and memberships that are kept by hand."""

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
from portal.web.sorting import choose_sort
from portal.web.templatetags.formatting import person

PAGE = 50


@tenant_admin_required
@require_safe
def people_list(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    return render_people(request, tenant, AddMemberForm())


@tenant_admin_required
@posted_forms.only_posted
def add_person(request: HttpRequest, tenant: Tenant) -> HttpResponse:
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
                request, _("%(person)s now belongs to %(tenant)s.") % {"person": row.user, "tenant": tenant}
            )
            return redirect("tenant-people", tenant.slug)
    return render_people(request, tenant, form)


def render_people(request: HttpRequest, tenant: Tenant, form: AddMemberForm) -> HttpResponse:
    now = timezone.now()
    text, sort = request.GET.get("q", "").strip(), request.GET.get("sort", "")
    sort = choose_sort(sort, ranking.SORTS, ranking.SORTS[0])
    used = ranking.usage_by(ranking.usage_this_month(tenant, now), "user_id")
    ids = ranking.rank_members(membership.members_of(tenant, text), used, sort)
    page = Paginator(ids, PAGE).get_page(request.GET.get("page"))
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "q": text,
        "sort": sort,
        "page": page,
        "members": ranking.member_rows(tenant, list(page), used, now),
    }
    return posted_forms.render_form(request, "tenants/people.html", form, context)


@tenant_admin_required
@require_safe
def person_detail(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    """Show a member. `pk` is the person's."""
    row = get_object_or_404(Membership.objects.select_related("user"), tenant=tenant, user=pk)
    now = timezone.now()
    month = ranking.usage_this_month(tenant, now).filter(user=row.user)
    keys = queries.keys_of(row.user).filter(tenant=tenant).filter(queries.is_usable())
    own, may_operate = QuotaTarget(tenant=tenant, user=row.user), permissions.may_operate(current_user(request))
    allowances = status.allowances_of_member(tenant, row.user, now)
    if may_operate:
        allowances += status.allowances_everywhere(row.user, tenant.zone, now)
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "membership": row,
        "used": ranking.usage_by(month, "user_id").get(row.user_id, ranking.Used()),
        "allowances": allowances,
        "own": Quota.objects.filter(tenant=tenant, user=row.user).select_related("model"),
        "everywhere": Quota.objects.filter(tenant=None, user=row.user).select_related("model") if may_operate else [],
        "may_give": administration.may_set(current_user(request), own),
        "keys": keys[:PAGE],
        "by_hand": membership.is_by_hand(row),
        "myself": row.user == current_user(request) and not may_operate,
        "form": RoleForm(initial={"role": row.role}),
    }
    return render(request, "tenants/person.html", context)


@tenant_admin_required
@posted_forms.only_posted
def change_role(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    row = get_object_or_404(Membership.objects.select_related("user"), tenant=tenant, user=pk)
    form = RoleForm(request.POST)
    if form.is_valid():
        try:
            changed = membership.change_role(current_user(request), row, form.cleaned_data["role"])
        except membership.MembershipRefused as refusal:
            messages.error(request, refusal.sentence)
        else:
            message = _("%(person)s now has the role “%(role)s”.")
            messages.success(request, message % {"person": person(row.user), "role": changed.get_role_display()})
    return redirect("tenant-person", tenant.slug, pk)


@tenant_admin_required
@posted_forms.only_posted
def appoint_champion(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    row = get_object_or_404(Membership.objects.select_related("user", "tenant"), tenant=tenant, user=pk)
    appointed = posted_forms.posted_choice(request, "champion", "yes", "no") == "yes"
    membership.appoint_champion(current_user(request), row, appointed)
    message = _("%(person)s is now a champion.") if appointed else _("%(person)s is no longer a champion.")
    messages.success(request, message % {"person": person(row.user)})
    return redirect("tenant-person", tenant.slug, pk)


@tenant_admin_required
@require_http_methods(["GET", "HEAD", "POST"])
def remove_person(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    """Remove a member, after a page that asks: it stops the person's keys."""
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
    message = _("%(person)s no longer belongs to %(tenant)s.")
    messages.success(request, message % {"person": person(row.user), "tenant": tenant})
    return redirect("tenant-people", tenant.slug)
