"""Revoke API keys and management keys that were found in the wrong place, no matter to which person they belong."""

from dataclasses import dataclass
from typing import TypeVar

from portal.accounts.models import User
from portal.keys import lifecycle, management_keys, secret, site_secrets
from portal.keys.models import ApiKey, ManagementKey

AnyKey = TypeVar("AnyKey", ApiKey, ManagementKey)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakedKeys:
    """The keys in a text: revoked now, already revoked before, and how many look like keys but are not ours."""

    revoked: tuple[ApiKey, ...]
    revoked_management: tuple[ManagementKey, ...]
    known: tuple[ApiKey | ManagementKey, ...]
    strange: int

    @property
    def any(self) -> bool:
        return bool(self.revoked or self.revoked_management or self.known or self.strange)


def revoke_leaked(text: str, by: User) -> LeakedKeys:
    """Revoke every key whose full text is in `text`, and notify the people concerned: every reader can use it now."""
    keys, strange = find_in_text(ApiKey, text)
    management, strange_management = find_in_text(ManagementKey, text)
    found = LeakedKeys(
        revoked=tuple(key for key in keys if key.revoked_at is None),
        revoked_management=tuple(key for key in management if key.revoked_at is None),
        known=(
            *(key for key in keys if key.revoked_at is not None),
            *(key for key in management if key.revoked_at is not None),
        ),
        strange=strange + strange_management,
    )
    for key in found.revoked:
        lifecycle.revoke_leaked_key(key, by)
    for management_key in found.revoked_management:
        management_keys.revoke_leaked_management_key(management_key)
    return found


def find_in_text(model: type[AnyKey], text: str) -> tuple[list[AnyKey], int]:
    """Return the keys of this model whose full text is in `text`, and how many more look like keys but are not ours."""
    texts = secret.find_secrets(text, model.TEXT_PREFIX)
    digests = [digest for found in texts for digest in site_secrets.digests_of(found)]
    keys = list(model._default_manager.filter(digest__in=digests).select_related("user"))
    return keys, len(texts) - len(keys)
