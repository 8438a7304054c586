"""Count wrong management keys by client address.

In the cache of each process: this slows down programs that retry all the time. It is not the protection against
guesses (a key has 190 random bits). A right key is never refused because of wrong ones from behind the same proxy.
"""

from django.core.cache import cache
from django.http import HttpRequest

from portal.web.client_address import client_address

MAX_WRONG = 20  # within PERIOD; from then on 429 instead of 401
PERIOD = 60  # seconds


def count_wrong_key(request: HttpRequest) -> int:
    """Count one more wrong key. Return the seconds to wait before the next, 0 as long as there are not too many."""
    counted = f"wrong-management-keys-{client_address(request)}"
    cache.add(counted, 0, PERIOD)
    try:
        count = cache.incr(counted)
    except ValueError:  # it expired between these two lines
        return 0
    return PERIOD if count > MAX_WRONG else 0
