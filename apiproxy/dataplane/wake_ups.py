"""What a gateway asks of supervisors for calls of sleeping models, and how many models one caller may have loaded."""

from typing import NamedTuple

# Models that are loaded for the calls of a person within LOADED_WITHIN seconds; for a service, of each person that it
# counts as.
MAX_LOADING = 4
LOADED_WITHIN = 60.0


class WakeUp(NamedTuple):
    """A request to load a model.

    A client that leaves at once has its model loaded all the same, so what bounds the caller is remembered where all
    gateways look (`WakeCaller`): `most` models within LOADED_WITHIN seconds of the last call for each, in all workers
    together. So a person can cause four loads a minute, and each takes the place of models that have been there for
    as long as `eviction` promises.
    """

    model: int  # its id
    caller: tuple[str, int]  # for whose call, as `CallFlow.caller`
    most: int | None  # None: as many as it likes
    interactive: bool  # a person or a service waits, not a batch


class RefusedWakeUps:
    """Of which callers a model is not loaded, as they had too many loaded, and until when. Times are seconds."""

    def __init__(self) -> None:
        self._until: dict[tuple[tuple[str, int], int], float] = {}  # by caller and model

    def note(self, wake: WakeUp, until: float) -> None:
        self._until[wake.caller, wake.model] = until

    def seconds(self, wake: WakeUp, now: float) -> float:
        """Return in how many seconds it may be asked again; 0: now."""
        return max(0.0, self._until.get((wake.caller, wake.model), now) - now) if self._until else 0.0

    def forget(self, now: float) -> None:
        """Forget those that are over. Call it about once a second."""
        if self._until:
            self._until = {key: until for key, until in self._until.items() if until > now}
