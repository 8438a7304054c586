"""How pages about a tenant and those of operators begin: who may see them at all, and as what."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache

from portal.accounts import permissions
from portal.accounts.permissions import current_user

View = Callable[..., HttpResponse]


def tenant_admin_required(view: View) -> View:
    """Give the view its Tenant in place of `slug`. For others than its admins and operators there is no such page."""

    @login_required
    @never_cache
    @wraps(view)
    def guarded(request: HttpRequest, slug: str, *args: Any, **kwargs: Any) -> HttpResponse:
        tenant, may_administer = permissions.tenant_for(current_user(request), slug)
        if not may_administer:
            raise Http404
        return view(request, tenant, *args, **kwargs)

    return guarded


def operator_required(view: View) -> View:
    """Who is signed out is sent to sign in; who is no operator is told whom to ask. Never kept by a browser."""

    @login_required
    @never_cache
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        permissions.require_operator(current_user(request))
        return view(request, *args, **kwargs)

    return guarded
