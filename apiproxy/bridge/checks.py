"""Checks of the gateway's settings: `manage.py check` reports them, and `up` refuses to start with them."""

from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning


def check_gateway_settings(**_: Any) -> list[CheckMessage]:
    return [
        *check_workers(settings.GATEWAY_WORKERS, settings.REDIS_URL),
        *check_redis_url(settings.REDIS_URL),
        *check_memory(settings.GATEWAY_MEMORY, settings.GATEWAY_MEMORY_PER_KEY, settings.GATEWAY_MAX_BODY),
        *check_server(runserver=settings.RUNSERVER, daphne=apps.is_installed("daphne")),
    ]


def check_workers(count: int, url: str) -> list[CheckMessage]:
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


def check_memory(total: int, per_key: int, largest: int) -> list[CheckMessage]:
    """Check that one request of the largest size (in bytes, as all of these) can find room."""
    if largest <= per_key and largest <= total - total // 8:
        return []
    return [
        Error(
            "A request as large as GATEWAY_MAX_BODY_MB allows could never be taken.",
            hint="GATEWAY_MEMORY_PER_KEY_MB must be as large at least, GATEWAY_MEMORY_MB an eighth larger.",
            id="apiproxy.E003",
        )
    ]


def check_redis_url(url: str) -> list[CheckMessage]:
    """Check the address. The message holds no part of it: there may be a password in it."""
    if not url:
        return []
    from redis.asyncio.connection import parse_url  # 0.06 s of every command

    try:
        parse_url(url)
    except ValueError:
        hint = "redis://[user:password@]host[:port][/number], rediss://… for TLS, or unix:///path"
        return [Error("REDIS_URL cannot be read.", hint=hint, id="apiproxy.E002")]
    return []


def check_server(*, runserver: bool, daphne: bool) -> list[CheckMessage]:
    """Check that `runserver` has daphne. Django's own server speaks WSGI only: no gateway, no WebSockets."""
    if daphne or not runserver:
        return []
    return [
        Warning(
            "daphne is not installed: `runserver` serves pages, but neither the gateway (/v1) nor live updates.",
            hint="`make test-setup` installs it. `manage.py up` serves everything without it.",
            id="apiproxy.W001",
        )
    ]
