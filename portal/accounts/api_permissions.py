"""Who may call an endpoint: the person must be allowed to, and with a management key its scopes must allow it too.

Each view has a `subject` (see scopes.SCOPES); "" admits every key, and a view without one admits sessions only. Which
rows a person may see is not decided here but by `permissions` in the views.
"""

from collections.abc import Collection
from typing import Any

from django.utils.translation import gettext as _
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from portal.accounts.permissions import may_operate
from portal.web.rest import scopes


class SignedIn(BasePermission):
    """Everyone who is signed in, or sends a management key whose scopes cover the request."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Raise PermissionDenied, with the reason, for a key whose scopes do not cover the request."""
        if not request.user.is_authenticated:
            return False
        key: Any = request.auth  # a management key; None: a session
        if key is not None:
            require_scope(key.scopes, request.method or "", getattr(view, "subject", None))
        return True


class Operators(SignedIn):
    """Operators only, at every address: others do not learn which objects exist."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return may_operate(request.user) and super().has_permission(request, view)


def require_scope(granted: Collection[str], method: str, subject: str | None) -> None:
    """Raise PermissionDenied unless the scopes `granted` cover such a request."""
    if subject is None:
        raise PermissionDenied(_("This cannot be done with a management key: sign in to the portal."))
    wanted = scopes.required_scope(subject, method)
    if subject and not scopes.covers(granted, wanted):
        raise PermissionDenied(_("This management key lacks the scope “%(scope)s”.") % {"scope": wanted})
