"""Lets other packages look at hosts and placements every few seconds, while this process is the site's controller.

Receivers of `hosts_watched` are called in the controller's thread of the database, so they query little and wait for
nothing else.
"""

from django.dispatch import Signal

EVERY = 5.0  # seconds
hosts_watched = Signal()


def send() -> None:
    """Have receivers look once. Raises django.db.Error."""
    hosts_watched.send(sender=None)
