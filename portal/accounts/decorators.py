"""Decorators that guard pages about a tenant and pages for operators."""

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
    """Pass the view the Tenant in place of `slug`. Answer 404 to everyone but its admins and operators."""

    @login_required
    @never_cache
    @wraps(view)
    def wrapper(request: HttpRequest, slug: str, *args: Any, **kwargs: Any) -> HttpResponse:
        tenant, may_administer = permissions.tenant_for(current_user(request), slug)
        if not may_administer:
            raise Http404
        return view(request, tenant, *args, **kwargs)

    return wrapper


def operator_required(view: View) -> View:
    """Let only operators pass; others get a page that names operators to ask. The browser keeps no copy."""

    @login_required
    @never_cache
    @wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        permissions.require_operator(current_user(request))
        return view(request, *args, **kwargs)

    return wrapper
