"""Who may use the API. Apart from it, as Django REST framework imports this while it is being imported itself."""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from portal.accounts.tenancy import may_operate


class Operators(BasePermission):
    """At every address alike: others do not learn what is there."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return may_operate(request.user)
