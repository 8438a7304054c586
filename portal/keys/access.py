"""Which models a tenant's keys may call, and whether they answer now. For pages: gateways have their own catalogue."""

from collections.abc import Iterable
from dataclasses import dataclass

from django.db import models
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils.translation import gettext_lazy as _

from modelregistry.models import Replica, ServedModel
from portal.accounts.models import Tenant
from portal.keys.models import ApiKey, ModelAccess


class Liveness(models.TextChoices):
    """What a caller would meet now."""

    UP = "up", _("answers now")
    STARTING = "starting", _("starting")
    ASLEEP = "asleep", _("asleep")
    DOWN = "down", _("not running")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model that may be called. `context` in tokens per request, None = not stated by the operator."""

    name: str
    description: str
    task: str
    context: int | None
    state: Liveness


def open_to(tenants: Iterable[Tenant]) -> QuerySet[ServedModel]:
    """The enabled models that at least one of these tenants may call."""
    rules = ModelAccess.objects.filter(model=OuterRef("pk"))
    return ServedModel.objects.filter(~Exists(rules) | Exists(rules.filter(tenant__in=list(tenants))), enabled=True)


def open_to_key(key: ApiKey) -> QuerySet[ServedModel]:
    """The enabled models that this key may call: its own choice of its tenant's."""
    models_ = open_to([key.tenant])
    if key.allowed_models.exists():
        return models_.filter(Q(pk__in=key.allowed_models.all()))
    return models_


def offers(served: QuerySet[ServedModel]) -> list[Offer]:
    """These models with their state, by name. Two queries."""
    return [
        Offer(
            name=model.name,
            description=model.description,
            task=model.task,
            context=model.context,
            state=liveness({replica.state for replica in model.replica_set.all()}),
        )
        for model in served.prefetch_related("replica_set")
    ]


def liveness(states: set[str]) -> Liveness:
    """The best that any replica can do for a caller."""
    if Replica.State.READY in states:
        return Liveness.UP
    if Replica.State.ASLEEP in states:
        return Liveness.ASLEEP
    if Replica.State.STARTING in states:
        return Liveness.STARTING
    return Liveness.DOWN


def promise(offer: Offer) -> tuple[int, bool, str]:
    """To sort by: what answers now before what could, chat before other tasks, then by name."""
    order = [Liveness.UP, Liveness.ASLEEP, Liveness.STARTING, Liveness.DOWN]
    return order.index(offer.state), offer.task != ServedModel.Task.CHAT, offer.name


def to_try(offered: list[Offer]) -> Offer | None:
    """The model to show in an example."""
    return min(offered, key=promise, default=None)
