"""End the keys that somebody found where they must not be: for models and for management, whosever they are."""

from dataclasses import dataclass

from portal.accounts.models import User
from portal.keys import lifecycle
from portal.keys import management_keys as management
from portal.keys.models import ApiKey, ManagementKey


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakedKey:
    """`ended` were ended now, `known` had been before; `strange` more look like keys but are not ours."""

    ended: tuple[ApiKey, ...]
    ended_management: tuple[ManagementKey, ...]
    known: tuple[ApiKey | ManagementKey, ...]
    strange: int

    @property
    def any(self) -> bool:
        return bool(self.ended or self.ended_management or self.known or self.strange)


def revoke_leaked(text: str, by: User) -> LeakedKey:
    """Revoke every key whose full text stands in `text` and tell whom it concerns: it works for everybody now."""
    keys, strange = lifecycle.find_in_text(text)
    managing, strange_managing = management.find_in_text(text)
    found = LeakedKey(
        ended=tuple(key for key in keys if key.revoked_at is None),
        ended_management=tuple(key for key in managing if key.revoked_at is None),
        known=(
            *(key for key in keys if key.revoked_at is not None),
            *(key for key in managing if key.revoked_at is not None),
        ),
        strange=strange + strange_managing,
    )
    for key in found.ended:
        lifecycle.revoke_leaked_key(key, by)
    for management_key in found.ended_management:
        management.revoke_leaked_management_key(management_key)
    return found
