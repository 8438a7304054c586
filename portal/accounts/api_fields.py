"""Fields of the API that refer to a row by its name, among the rows that the caller may see.

A name of a row that the caller may not see gets the same answer as a name that does not exist. The serializer's context
must hold the `user`.
"""

from collections.abc import Callable
from typing import Any

from django.db.models import Model, QuerySet
from rest_framework import serializers

from portal.accounts import permissions
from portal.accounts.models import Tenant, User


class Named(serializers.SlugRelatedField[Any]):
    """A row of `model`, referred to by `column`. `among` returns the rows that a person may refer to."""

    def __init__(self, model: type[Model], column: str, among: Callable[[User], QuerySet[Any]], **options: Any) -> None:
        self._among = among
        super().__init__(slug_field=column, queryset=model._default_manager.none(), **options)

    def get_queryset(self) -> QuerySet[Any]:
        return self._among(self.context["user"])


class AnyTenant(Named):
    """A tenant that the person may see."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Tenant, "slug", permissions.visible_tenants, **options)


class Colleague(Named):
    """A member of one of the person's tenants; for operators any user."""

    def __init__(self, **options: Any) -> None:
        super().__init__(User, "username", colleagues, **options)


def colleagues(user: User) -> QuerySet[User]:
    if permissions.may_operate(user):
        return User.objects.all()
    return User.objects.filter(tenants__in=permissions.visible_tenants(user)).distinct()
