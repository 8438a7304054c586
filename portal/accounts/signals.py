"""What packages above may want to know of people."""

from django.dispatch import Signal

# The account for emergencies signed in. Arguments: `request`, `user`. Within the transaction of the sign-in.
break_glass_used = Signal()
