"""Which models a tenant's keys may call, and whether these answer now. For pages: gateways have their own catalogue."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime

from django.db import models
from django.db.models import Exists, OuterRef, Prefetch, QuerySet
from django.utils.translation import gettext_lazy as _

from modelregistry import routes
from modelregistry.capabilities import find_capabilities
from modelregistry.database_clock import read_now
from modelregistry.models import Replica, ServedModel
from modelregistry.overview import MADE_UP, HostReach, is_supervised, reach_of
from modelregistry.sampling import describe_sampling
from portal.accounts.models import Tenant, User
from portal.accounts.permissions import may_operate, own_tenants
from portal.keys.models import ApiKey, ModelAccess


class Liveness(models.TextChoices):
    """Whether a model would answer a call now."""

    UP = "up", _("answers now")
    UNSURE = "unsure", _("not confirmed")
    STARTING = "starting", _("starting")
    ASLEEP = "asleep", _("asleep")
    DOWN = "down", _("not running")


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailableModel:
    """A model that may be called, also by one of its `aliases`."""

    name: str
    aliases: tuple[str, ...] = ()
    description: str
    task: str
    context: int | None  # tokens per request; None: the operator has not specified it
    state: Liveness
    made_up: bool = False  # on hosts of `demodata`, which do not exist, so no call is answered
    retires_on: date | None = None  # from that day on it is no longer offered
    tools: bool = False  # see `modelregistry.capabilities`
    vision: bool = False
    reasoning: bool = False
    loops: str = ServedModel.Loops.OFF  # what is done about word loops
    sampling: tuple[tuple[str, str], ...] = ()  # parameters that it sets or bounds, and how


def open_to(tenants: Iterable[Tenant]) -> QuerySet[ServedModel]:
    """Return the offered models that at least one of these tenants may call."""
    rules = ModelAccess.objects.filter(model=OuterRef("pk"))
    open_ = ~Exists(rules) | Exists(rules.filter(tenant__in=list(tenants)))
    return routes.offered_models().filter(open_)


def offered_to(user: User) -> QuerySet[ServedModel]:
    """Return the models that a person may know of: those that they may call, all of them to operators."""
    return routes.offered_models() if may_operate(user) else open_to(own_tenants(user))


def open_to_key(key: ApiKey) -> QuerySet[ServedModel]:
    """Return the offered models that this key may call: those of its tenant, or the key's selection of them."""
    models_ = open_to([key.tenant])
    return models_ if key.every_model else models_.filter(pk__in=key.allowed_models.all())


def available_models(served: QuerySet[ServedModel]) -> list[AvailableModel]:
    """Return these models with their state, by name. Three queries."""
    now = read_now()
    return [describe_model(model, now) for model in with_replicas(served)]


def with_replicas(served: QuerySet[ServedModel]) -> QuerySet[ServedModel]:
    """Prefetch what `describe_model` reads."""
    return served.prefetch_related(Prefetch("replica_set", Replica.objects.select_related("host")), "aliases")


def describe_model(model: ServedModel, now: datetime) -> AvailableModel:
    """Return a model that `with_replicas` gave, with its state."""
    can = find_capabilities(model)
    return AvailableModel(
        name=model.name,
        aliases=tuple(alias.name for alias in model.aliases.all()),
        description=model.description,
        task=model.task,
        context=model.context,
        state=liveness(model.replica_set.all(), now),
        made_up=any(replica.host.seen_at == MADE_UP for replica in model.replica_set.all()),
        retires_on=model.retires_on,
        tools=ServedModel.Capability.TOOLS in can,
        vision=ServedModel.Capability.VISION in can,
        reasoning=ServedModel.Capability.REASONING in can,
        loops=model.loops,
        sampling=tuple(describe_sampling(routes.presets_of(model))),
    )


def liveness(replicas: Iterable[Replica], now: datetime) -> Liveness:
    """Return the best state that any of a model's replicas offers to a caller."""
    known = list(replicas)
    ready = [is_supervised(one.host, now) for one in known if one.state == Replica.State.READY]
    if ready:
        return Liveness.UP if any(ready) else Liveness.UNSURE
    # A silent host starts and wakes nothing.
    states = {replica.state for replica in known if reach_of(replica.host, now) == HostReach.ONLINE}
    if Replica.State.ASLEEP in states:
        return Liveness.ASLEEP
    if Replica.State.STARTING in states:
        return Liveness.STARTING
    return Liveness.DOWN


def sort_key(offer: AvailableModel) -> tuple[int, bool, bool, bool, str]:
    """Return the key to sort by: models that answer now first, chat before other tasks, retiring models last; name.

    Made-up models come after real ones, so that the first question is answered where both are.
    """
    order = [Liveness.UP, Liveness.UNSURE, Liveness.ASLEEP, Liveness.STARTING, Liveness.DOWN]
    retires = offer.retires_on is not None
    return order.index(offer.state), offer.task != ServedModel.Task.CHAT, offer.made_up, retires, offer.name


def suggested_model(offered: list[AvailableModel]) -> AvailableModel | None:
    """Return the model to show in an example."""
    return min(offered, key=sort_key, default=None)
