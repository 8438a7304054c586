"""How fast models generate, learnt from answers that were read to their end.

Of a unary call whose client left before the answer came, nobody saw how much the engine had made. By the pace of the
model's other answers it is known about as well as time is a measure of work.
"""

# What a new answer weighs against all before it.
WEIGHT = 0.1
# Shorter ones say more of the prompt's length than of the pace.
SHORTEST = 8


class ThroughputEstimator:
    """Tokens per second of one answer, by model id. Nothing is known of a model before its first answer: 0."""

    def __init__(self) -> None:
        self._paces: dict[int, float] = {}

    def learn(self, model: int, tokens: float, seconds: float) -> None:
        """One answer had so many tokens and took so long, from the request to its end."""
        if tokens < SHORTEST or seconds <= 0:
            return
        pace = tokens / seconds
        self._paces[model] = pace + (1 - WEIGHT) * (self._paces.get(model, pace) - pace)

    def guess(self, model: int, seconds: float) -> float:
        """Return tokens of an answer that was under way for so long."""
        return self._paces.get(model, 0.0) * seconds
