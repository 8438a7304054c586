"""Signals about people, for packages above this one."""

from django.dispatch import Signal

# The account for emergencies signed in. Arguments: `request`, `user`. Within the transaction of the sign-in.
break_glass_used = Signal()
