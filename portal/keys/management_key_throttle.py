"""Wrong management keys, counted by the address that they come from.

Kept in the cache of each process: this is to slow down programs that try again and again, not what keeps guesses out
(a key holds 190 random bits). A right key is never refused for the wrong ones of others behind the same proxy.
"""

from django.core.cache import cache
from django.http import HttpRequest

from portal.web.client_address import client_address

WRONG = 20  # within PERIOD; from then on 429 instead of 401
PERIOD = 60  # seconds


def wrong_key(request: HttpRequest) -> int:
    """Count one more. Gives how many seconds to wait before the next, 0 as long as it is not too many."""
    counted = f"wrong-management-keys-{client_address(request)}"
    cache.add(counted, 0, PERIOD)
    try:
        count = cache.incr(counted)
    except ValueError:  # it ran out between these two lines
        return 0
    return PERIOD if count > WRONG else 0
