"""How fast models generate, learnt from answers that were read to their end.

If the client of a unary call leaves before the answer came, it is not known how much the engine had generated. It is
estimated from the rate of the model's other answers, about as well as time is a measure of work.
"""

# The weight of a new answer against all before it.
WEIGHT = 0.1
# Tokens; shorter answers say more of the prompt's length than of the rate.
MIN_TOKENS = 8
# Tokens per second of one answer. The fastest engines make 3,000. If one reported a million for an answer of 5 ms,
# aborted calls would be charged with whole contexts until a hundred answers later.
MAX_RATE = 10_000.0


class ThroughputEstimator:
    """Estimates tokens per second of one answer, by model id. Before a model's first answer its rate is 0."""

    def __init__(self) -> None:
        self._rates: dict[int, float] = {}

    def observe(self, model: int, tokens: float, seconds: float) -> None:
        """Count an answer that had this many tokens and took this long, from the request to its end."""
        if tokens < MIN_TOKENS or seconds <= 0:
            return
        rate = min(tokens / seconds, MAX_RATE)
        self._rates[model] = rate + (1 - WEIGHT) * (self._rates.get(model, rate) - rate)

    def estimate(self, model: int, seconds: float) -> float:
        """Return the tokens of an answer that was under way for this long."""
        return self._rates.get(model, 0.0) * seconds
