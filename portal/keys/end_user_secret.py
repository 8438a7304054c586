"""The secret with which a service, such as Open WebUI, signs for which person it calls.

It is derived from a random number, which is stored, and API_KEY_SECRET, which no database holds: a copy of the database
names no one. It is shown once, when it is made. A successor of the key has the same one.
"""

import hmac
import secrets

from django.utils.translation import gettext as _

from portal.accounts.models import User
from portal.keys import lifecycle
from portal.keys.models import ApiKey
from portal.keys.site_secrets import accepted_secrets


class NoEndUsers(lifecycle.KeyRefused):
    """Only a service names people."""


def secret_of(nonce: str) -> str:
    """Return the secret, 64 hexadecimal digits."""
    return secrets_of(nonce)[0]


def secrets_of(nonce: str) -> list[str]:
    """Return the secret, and those that programs have from before API_KEY_SECRET was replaced."""
    part = b"end users:" + nonce.encode()
    return [hmac.digest(one.encode(), part, "sha256").hex() for one in accepted_secrets()]


def webui_settings(secret: str) -> list[str]:
    """Return the lines for the environment of Open WebUI."""
    return ["ENABLE_FORWARD_USER_INFO_HEADERS=true", f"FORWARD_USER_INFO_HEADER_JWT_SECRET={secret}"]


def make_user_secret(key: ApiKey, *, by: User | None = None) -> str:
    """Give a service key a new secret and return it. From now on its calls name people only by tokens signed with it.

    The one before stops working within one catalogue poll. Raises NoEndUsers, and what `lifecycle.change_key` does.
    """
    if key.user_id is not None:
        raise NoEndUsers(_("Only a service key has people behind it."))
    nonce = secrets.token_hex(16)
    lifecycle.change_key(key, by=by, takes_user_headers=True, end_user_nonce=nonce)
    return secret_of(nonce)


def remove_user_secret(key: ApiKey, *, by: User | None = None) -> None:
    """Let the key's calls name people without a signature again."""
    lifecycle.change_key(key, by=by, end_user_nonce="")
