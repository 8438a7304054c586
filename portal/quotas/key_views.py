"""The page of one API key: what it may do, what it used, and what is left to it."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.views.decorators.http import require_safe

from portal.accounts.permissions import current_user
from portal.keys import lifecycle, model_access, queries
from portal.keys.forms import RevokeForm, RotateForm
from portal.keys.key_example import make_example
from portal.keys.models import ApiKey
from portal.quotas import administration, request_pages
from portal.quotas.status import allowances_of_key
from portal.usage import periods
from portal.usage.models import UsageDay
from portal.usage.records import sum_all


@login_required
@require_safe
def key_detail(request: HttpRequest, prefix: str) -> HttpResponse:
    key = get_object_or_404(queries.viewable_by(current_user(request)), prefix=prefix)
    now = timezone.now()
    [row] = queries.key_rows(ApiKey.objects.filter(pk=key.pk), now)
    month = periods.parse_period("this-month", now, key.tenant.zone)
    may_manage = queries.manageable_by(current_user(request)).filter(pk=key.pk).exists()
    context: dict[str, object] = {
        "key": row,
        "zone": key.tenant.zone,
        "this_month": sum_all(month.filter_days(UsageDay.objects.filter(key=key))),
        "may_manage": may_manage,
        "may_be_replaced": may_manage and not row.replaced_by and lifecycle.may_be_replaced(key),
        "rotate": RotateForm(),
        "revoke": RevokeForm(),
    }
    if row.works:
        offered = model_access.available_models(model_access.open_to_key(key))
        context["bars"] = request_pages.quota_bars(current_user(request), allowances_of_key(key, now))
        context["may_give"] = administration.may_set(current_user(request), administration.QuotaTarget(key=key))
        context["offered"] = offered
        context["example"] = make_example(request, offered, chosen=request.GET.get("model", ""))
    return render(request, "keys/detail.html", context)
