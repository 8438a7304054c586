"""What packages above may want to know of keys."""

from django.dispatch import Signal

# A key got a successor. Arguments: `old`, `new`. Within the transaction that makes it.
key_replaced = Signal()
