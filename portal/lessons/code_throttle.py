"""Count wrong codes of seminars, by person and by address.

In the cache of each process: it slows down programs. The protection against guesses are the 80 bits of a code. By
address many are allowed, since the people of a room share one.
"""

from django.core.cache import cache
from django.http import HttpRequest
from django.utils.translation import gettext as _
from rest_framework.request import Request

from portal.accounts.models import User
from portal.web.client_address import client_address

PERIOD = 600  # seconds
MOST_OF_PERSON = 10
MOST_OF_ADDRESS = 200


def _counters(request: HttpRequest | Request, user: User) -> dict[str, int]:
    return {
        f"wrong-seminar-codes-of-{user.pk}": MOST_OF_PERSON,
        f"wrong-seminar-codes-from-{client_address(request)}": MOST_OF_ADDRESS,
    }


def seconds_to_wait(request: HttpRequest | Request, user: User) -> int:
    """Return how long to wait before the next code; 0: it may be tried now."""
    counters = _counters(request, user)
    counted = cache.get_many(counters)
    return PERIOD if any(counted.get(name, 0) >= most for name, most in counters.items()) else 0


def count_wrong_code(request: HttpRequest | Request, user: User) -> None:
    for name in _counters(request, user):
        cache.add(name, 0, PERIOD)
        try:
            cache.incr(name)
        except ValueError:  # it expired between these two lines
            continue


def sentence(wait: int) -> str:
    """Return what a person reads who has typed too many wrong codes."""
    return _("Too many wrong codes. Try again in %(minutes)d minutes.") % {"minutes": -(-wait // 60)}
