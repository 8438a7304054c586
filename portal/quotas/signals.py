"""Signals about quotas, for the packages above this one. Both are sent within the transaction that removes a quota."""

from django.dispatch import Signal

# A person removes a quota. Arguments: `quota`. A receiver that raises QuotaRefused forbids it.
quota_removal_requested = Signal()

# A person has removed a quota. Arguments: `quota`, as it was.
quota_removed = Signal()
