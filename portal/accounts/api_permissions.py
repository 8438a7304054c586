"""Who may call an endpoint: what its person may, and of that what the key's scopes say.

Each view says its `subject` (see scopes.SCOPES); "" is for all keys, and a view without one for sessions alone. Which
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


class People(BasePermission):
    """Everybody who is signed in or has a management key for it."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Raise PermissionDenied, with the reason, for a key that was not made for this."""
        if not request.user.is_authenticated:
            return False
        key: Any = request.auth  # a management key; None: a session
        if key is not None:
            within_scopes(key.scopes, request.method or "", getattr(view, "subject", None))
        return True


class Operators(People):
    """At every address alike: others do not learn what is there."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return may_operate(request.user) and super().has_permission(request, view)


def within_scopes(held: Collection[str], method: str, subject: str | None) -> None:
    """Raise PermissionDenied unless the key was made for such a request."""
    if subject is None:
        raise PermissionDenied(_("This cannot be done with a management key: sign in to the portal."))
    wanted = scopes.needed(subject, method)
    if subject and not scopes.covers(held, wanted):
        raise PermissionDenied(_("This management key lacks the scope “%(scope)s”.") % {"scope": wanted})
