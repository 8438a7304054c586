"""A person's own keys, as pages show them."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import models
from django.db.models import Exists, OuterRef, QuerySet
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import User
from portal.keys.models import ApiKey

# Long enough to make a new key and change what uses the old one, holidays included.
EXPIRES_SOON = timedelta(days=14)


def is_usable() -> Exists:
    """The condition of KeyQuerySet.usable, to filter by or to annotate."""
    return Exists(ApiKey.objects.usable().filter(pk=OuterRef("pk")))


class State(models.TextChoices):
    WORKS = "works", _("works")
    STOPPED = "stopped", _("stopped")
    EXPIRED = "expired", _("expired")
    REVOKED = "revoked", _("revoked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A key that a person holds. `models` None: all that the tenant may use. `stopped`: see KeyQuerySet.usable."""

    prefix: str
    name: str
    tenant: str
    models: tuple[str, ...] | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_because: str
    state: State
    expires_soon: bool

    @property
    def works(self) -> bool:
        return self.state is State.WORKS


def keys_of(user: User) -> QuerySet[ApiKey]:
    """The keys of this person and nobody else's. Every page of one's own keys begins here."""
    keys: QuerySet[ApiKey] = ApiKey.objects.filter(user=user).select_related("tenant")
    return keys


def working(user: User) -> QuerySet[ApiKey]:
    """The keys with which this person can call now, newest first."""
    return keys_of(user).filter(is_usable())


def with_usable(keys: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
    """The same keys with `can_be_used`, which `state` needs."""
    return keys.annotate(can_be_used=is_usable())


def state(key: ApiKey) -> State:
    """What a caller with this key would meet. Revoked or expired say why better than "stopped"."""
    if key.state != "active":
        return State(key.state)
    return State.WORKS if key.can_be_used else State.STOPPED  # type: ignore[attr-defined]


def held(keys: QuerySet[ApiKey], now: datetime) -> list[Held]:
    """These keys as plain values, newest first. Two queries."""
    return [
        Held(
            prefix=key.prefix,
            name=key.name,
            tenant=key.tenant.name,
            models=None if key.every_model else tuple(model.name for model in key.allowed_models.all()),
            created_at=key.created_at,
            last_used_at=key.last_used_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            revoked_because=key.revoked_because,
            state=state(key),
            expires_soon=key.expires_at is not None and now < key.expires_at <= now + EXPIRES_SOON,
        )
        for key in with_usable(keys).prefetch_related("allowed_models")
    ]
