"""What `manage.py check` says of the gateway's settings, and `up` refuses to start with."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error


def gateway_settings(**_: Any) -> list[CheckMessage]:
    return [
        *workers(settings.GATEWAY_WORKERS, settings.REDIS_URL),
        *redis_url(settings.REDIS_URL),
        *memory(settings.GATEWAY_MEMORY, settings.GATEWAY_MEMORY_PER_KEY, settings.GATEWAY_MAX_BODY),
    ]


def workers(count: int, url: str) -> list[CheckMessage]:
    if count == 1 or url:
        return []
    return [
        Error(
            f"{count} gateway processes need Redis: without it each counts limits in its own memory and lets through "
            "what the others have let through already.",
            hint="Set REDIS_URL, or run one (GATEWAY_WORKERS=1).",
            id="apiproxy.E001",
        )
    ]


def memory(total: int, per_key: int, largest: int) -> list[CheckMessage]:
    """Of these bytes: one request of the largest size must find room."""
    if largest <= per_key and largest <= total - total // 8:
        return []
    return [
        Error(
            "A request as large as GATEWAY_MAX_BODY_MB allows could never be taken.",
            hint="GATEWAY_MEMORY_PER_KEY_MB must be as large at least, GATEWAY_MEMORY_MB an eighth larger.",
            id="apiproxy.E003",
        )
    ]


def redis_url(url: str) -> list[CheckMessage]:
    """Return the message holds no part of the address: there may be a password in it."""
    if not url:
        return []
    from redis.asyncio.connection import parse_url  # 0.06 s of every command

    try:
        parse_url(url)
    except ValueError:
        hint = "redis://[user:password@]host[:port][/number], rediss://… for TLS, or unix:///path"
        return [Error("REDIS_URL cannot be read.", hint=hint, id="apiproxy.E002")]
    return []
