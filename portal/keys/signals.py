"""Signals about keys, for the packages above this one."""

from django.dispatch import Signal

# A key got a successor. Arguments: `old`, `new`. Within the transaction that makes it.
key_replaced = Signal()
