"""Signals about keys, for the packages above this one."""

from django.dispatch import Signal

# A person asks for a new key. Arguments: `tenant`, `user` (None: a service key). A receiver that raises KeyRefused
# forbids it.
key_requested = Signal()

# A key is to get a successor. Arguments: `key`. A receiver that raises KeyRefused forbids it.
key_replacement_requested = Signal()

# The playground's key of a person got a new text. Arguments: `key`. Within the transaction that stores it.
playground_key_renewed = Signal()

# A key got a successor. Arguments: `old`, `new`. Within the transaction that makes it.
key_replaced = Signal()
