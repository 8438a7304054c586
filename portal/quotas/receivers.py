"""What quotas do when keys change."""

from typing import Any

from portal.keys.models import ApiKey
from portal.quotas.models import Quota


def copy_quotas(old: ApiKey, new: ApiKey, **_: Any) -> None:
    """Give a key's successor the same quotas, also those whose unit this version does not have."""
    for quota in Quota._base_manager.filter(key=old):
        quota.pk, quota.key, quota._state.adding = None, new, True
        quota.save()
