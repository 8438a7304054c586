"""A clock that goes when a test says so."""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now
