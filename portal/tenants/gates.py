"""How every page about a tenant begins: who may see it at all, and as what."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache

from portal.accounts import tenancy
from portal.accounts.tenancy import me

View = Callable[..., HttpResponse]


def for_admins(view: View) -> View:
    """Gives the view its Tenant in place of `slug`. For others than its admins and operators there is no such page."""

    @login_required
    @never_cache
    @wraps(view)
    def guarded(request: HttpRequest, slug: str, *args: Any, **kwargs: Any) -> HttpResponse:
        tenant, may_administer = tenancy.tenant_for(me(request), slug)
        if not may_administer:
            raise Http404
        return view(request, tenant, *args, **kwargs)

    return guarded


def for_operators(view: View) -> View:
    """Who is no operator is told whom to ask."""

    @login_required
    @never_cache
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        tenancy.operator(me(request))
        return view(request, *args, **kwargs)

    return guarded
