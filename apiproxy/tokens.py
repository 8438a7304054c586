"""What a call used, out of the usage objects of three protocols."""

from typing import Any, NamedTuple

# Prompt and answer are each a column of the records and are added up in SQL: together, too, they must be an `integer`.
# 2**32 records of as much can be added up in 64 bits.
MOST_TOKENS = 2**30 - 1
NOTHING: dict[str, Any] = {}


class Tokens(NamedTuple):
    """What a call used. `cached` is part of `prompt`, `reasoning` of `completion`."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion

    def within(self, most: int) -> "Tokens":
        """The same, where no number is larger than `most`."""
        return self if self.total <= most else Tokens(*(min(one, most) for one in self))


def tokens(usage: dict[str, Any]) -> Tokens:
    """An engine's usage object as numbers; what is absent or nonsense counts as 0.

    Chat, completions and embeddings say `prompt_tokens`; Responses says `input_tokens`; so does Messages, which leaves
    cached ones out of them. vLLM's rerank gives `total_tokens` alone.
    """
    completion = number(usage.get("completion_tokens", usage.get("output_tokens")))
    details = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or NOTHING
    prompt, cached = _prompt(usage)
    return Tokens(
        prompt=prompt, cached=cached, completion=completion, reasoning=number(details.get("reasoning_tokens"))
    )


def _prompt(usage: dict[str, Any]) -> tuple[int, int]:
    """All tokens of the prompt, and how many of them the engine had in its cache."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or NOTHING
    cached = number(details.get("cached_tokens"))
    if "prompt_tokens" in usage:
        return number(usage["prompt_tokens"]), cached
    if "input_tokens" in usage:
        read, written = (number(usage.get(f"cache_{what}_input_tokens")) for what in ("read", "creation"))
        return number(usage["input_tokens"]) + read + written, cached + read
    return number(usage.get("total_tokens")), cached


def number(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value <= MOST_TOKENS else 0
