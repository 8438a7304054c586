"""Fields of the API that name a row by what people call it, among the rows that the caller may know of.

A name of something else and a name of nothing are answered alike. They need the request in the serializer's context.
"""

from collections.abc import Callable
from typing import Any

from django.db.models import Model, QuerySet
from rest_framework import serializers

from portal.accounts import permissions
from portal.accounts.models import Tenant, User


class Named(serializers.SlugRelatedField[Any]):
    """`among`: the rows of a person."""

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
    """Somebody of the person's tenants; for operators anybody."""

    def __init__(self, **options: Any) -> None:
        super().__init__(User, "username", colleagues, **options)


def colleagues(user: User) -> QuerySet[User]:
    if permissions.may_operate(user):
        return User.objects.all()
    return User.objects.filter(tenants__in=permissions.visible_tenants(user)).distinct()
