"""Warnings about settings that work but that an operator should know about."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Warning, register


@register
def directory_is_encrypted(app_configs: Any, **_: Any) -> list[CheckMessage]:
    directory = settings.DIRECTORY
    if directory is None or directory.start_tls or directory.servers[0].startswith("ldaps:"):
        return []
    return [
        Warning(
            "Passwords travel to the company directory unencrypted.",
            hint="Remove LDAP_START_TLS=false, or use an ldaps:// address.",
            id="accounts.W001",
        )
    ]
