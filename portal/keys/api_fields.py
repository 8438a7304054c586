"""Fields of the API that name a key or a model; see `accounts.api_fields`."""

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
    def __init__(self, among: Callable[[User], QuerySet[ApiKey]], **options: Any) -> None:
        super().__init__(ApiKey, "prefix", among, **options)


class AnyModel(Named):
    """A model that is offered; for operators also one that is stopped or retired."""

    def __init__(self, **options: Any) -> None:
        super().__init__(ServedModel, "name", models, **options)


def models(user: User) -> QuerySet[ServedModel]:
    return ServedModel.objects.all() if permissions.may_operate(user) else routes.offered_models()
