"""Fields of the API with the prefix of a key or the name of a model; see `accounts.api_fields`."""

from collections.abc import Callable
from typing import Any

from django.db.models import QuerySet

from modelregistry import routes
from modelregistry.models import ServedModel
from portal.accounts import permissions
from portal.accounts.api_fields import Named
from portal.accounts.models import User
from portal.keys.models import ApiKey


class AnyKey(Named):
    """A key, by its prefix."""

    def __init__(self, among: Callable[[User], QuerySet[ApiKey]], **options: Any) -> None:
        super().__init__(ApiKey, "prefix", among, **options)


class AnyModel(Named):
    """An offered model, by its name; for operators also one that is stopped or retired."""

    def __init__(self, **options: Any) -> None:
        super().__init__(ServedModel, "name", visible_models, **options)


def visible_models(user: User) -> QuerySet[ServedModel]:
    return ServedModel.objects.all() if permissions.may_operate(user) else routes.offered_models()
