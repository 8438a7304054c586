"""Pages of a tenant for those who administer it."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from portal.accounts.models import Tenant
from portal.metering import giving
from portal.tenants.gates import for_admins, me


@for_admins
@require_GET
def requests(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    waiting = giving.waiting_for(me(request)).filter(tenant=tenant)
    return render(request, "tenants/requests.html", {"tenant": tenant, "zone": tenant.zone, "waiting": waiting})
