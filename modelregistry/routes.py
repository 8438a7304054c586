"""What is served, as plain values for gateways."""

from dataclasses import dataclass

from modelregistry.models import Replica, ServedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A replica that answers now. `upstream_model` is the name that the engine expects in a request."""

    replica_id: int
    model_id: int
    url: str
    api_key: str
    upstream_model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that is offered, whether or not a replica answers now. `context` in tokens, None = not known."""

    model_id: int
    name: str
    task: str
    engine: str
    launcher: str
    context: int | None
    created: int
    can_sleep: bool


def served() -> list[Served]:
    """Every enabled model. One query."""
    return [
        Served(
            model_id=model.pk,
            name=model.name,
            task=model.task,
            engine=model.engine,
            launcher=model.launcher,
            context=model.context,
            created=int(model.created_at.timestamp()),
            can_sleep=model.idle_after is not None,
        )
        for model in ServedModel.objects.filter(enabled=True)
    ]


def ready() -> list[Route]:
    """Every replica that may be given requests. One query."""
    replicas = Replica.objects.filter(state=Replica.State.READY, model__enabled=True).select_related("model")
    return [
        Route(
            replica_id=replica.pk,
            model_id=replica.model_id,
            url=replica.url,
            api_key=replica.api_key,
            upstream_model=replica.model.upstream_model or replica.model.name,
        )
        for replica in replicas
    ]
