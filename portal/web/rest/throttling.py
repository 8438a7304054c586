"""Refusals of clients that try too often.

In a module of its own, because Django REST framework imports it while it is being imported itself.
"""

from rest_framework.exceptions import ErrorDetail, Throttled


class TooManyRequests(Throttled):
    """429 with a sentence that says how long to wait. The framework's adds its own, so that this is said twice."""

    def __init__(self, wait: int, sentence: str) -> None:
        """Prepare the refusal; `wait` in seconds, for the header Retry-After."""
        super().__init__(wait)
        self.detail = ErrorDetail(sentence, self.default_code)
