"""What pages show, made in one line each."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.utils import timezone

from modelregistry.models import Host, Replica, ServedModel
from portal.accounts.models import Tenant, User
from portal.keys import lifecycle, management_keys
from portal.keys.models import ApiKey, ManagementKey
from portal.usage import records
from portal.usage.models import UsageRecord

FAR = {"engine": "external", "url": "http://10.0.0.5:8000"}


def serve(name: str = "qwen", *, state: str = "ready", task: str = "chat", context: int | None = 4096) -> ServedModel:
    """Return a model with one replica in this state."""
    model = ServedModel.objects.create(name=name, engine="llama.cpp", path=f"/{name}.gguf", task=task, context=context)
    host, _ = Host.objects.update_or_create(name="gpu-01", defaults={"seen_at": timezone.now()})
    Replica.objects.create(model=model, host=host, state=state)
    return model


def external(name: str = "far", **more: Any) -> ServedModel:
    """Return a model that an engine elsewhere serves."""
    return ServedModel.objects.create(name=name, **{**FAR, **more})


def key_of(user: User, tenant: Tenant, name: str = "laptop", **more: Any) -> ApiKey:
    key, _ = lifecycle.issue_key(tenant=tenant, user=user, name=name, **more)
    return key


def service_key_of(tenant: Tenant, service: str = "Dify", **more: Any) -> ApiKey:
    key, _ = lifecycle.issue_key(tenant=tenant, service=service, name=service, **more)
    return key


def management_key_of(
    user: User, *held: str, name: str = "script", life: timedelta = timedelta(days=30)
) -> tuple[ManagementKey, str]:
    """Return a management key and its text: of all scopes that this person may use, unless some are named."""
    chosen = held or [scope.name for scope in management_keys.usable_scopes(user)]
    return management_keys.issue_management_key(user=user, name=name, scopes_=chosen, expires_at=timezone.now() + life)


def call(
    key: ApiKey,
    *,
    tokens: tuple[int, int] = (10, 5),
    at: datetime | None = None,
    model: str = "qwen",
    estimated: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Return a request with this key, as UsageRecord's columns: (prompt, completion) tokens.

    `more` as these columns.
    """
    return {
        **{"request_id": uuid4().hex, "key_id": key.pk, "user_id": key.user_id, "tenant_id": key.tenant_id},
        **{"model": model, "replica_id": None, "endpoint": "chat/completions", "started_at": at or timezone.now()},
        **{"first_token_ms": None, "duration_ms": 100, "status": "finished", "estimated": estimated, "end_user": ""},
        **{"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "cached_tokens": 0, "reasoning_tokens": 0},
        **{"looped_tokens": 0, "saved_tokens": 0, "temperature": None, "watched": True},
        **more,
    }


def use(key: ApiKey, **columns: Any) -> UsageRecord:
    """Return one request with this key that was made; see `call`."""
    row = call(key, **columns)
    records.record_usage([row])
    return UsageRecord.objects.get(request_id=row["request_id"])


def use_each(keys: Iterable[ApiKey], at: datetime | None = None) -> None:
    """Record a request with each of these keys, all written at once: of 10 tokens, 11, 12 and so on."""
    records.record_usage([call(key, at=at, tokens=(10 + n, 0)) for n, key in enumerate(keys)])
