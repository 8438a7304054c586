"""What the files of a model tell about it, as plain values. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


def gettext_noop(sentence: str) -> str:
    """Marks a sentence for translators, who find it by this function's name. Who shows it to people translates it."""
    return sentence


class Unreadable(Exception):
    """A model's files cannot be used. `str()` is a sentence for the operator, in English.

    `sentence` and `values` are the same before they are put together, to be translated by who has translations.
    `risk`: "pickle" or "remote-code" if an operator may allow it by that name, else "".
    """

    def __init__(self, sentence: str, *, risk: str = "", **values: object) -> None:
        super().__init__(sentence % values)
        self.sentence = sentence
        self.values = values
        self.risk = risk


@dataclass(frozen=True, slots=True)
class Attention:
    """What one layer remembers of each token: `kv_heads` × (`key_dim` + `value_dim`) numbers.

    `window`: of the last so many tokens only; None: of all. DeepSeek's latent attention (MLA) is one head with the
    latent vector and the rotary part as its key, and no value.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a model's files tell. None or "": they do not tell. Sizes in bytes, context in tokens.

    `attention`: one for each layer that has a KV cache. Layers that keep a state of fixed size instead (Mamba, linear
    attention, short convolutions) have none, and neither have encoders (BERT): what such a layer keeps does not grow
    with the context and is some MB per request, which a prediction has to cover by its overhead.
    `weight_bytes`: of the tensors on disk that the engine loads. `embedding_weight_bytes`: of these, the token
    embedding, which quantising at start leaves as it is. `task`: what the architecture was made for.
    `risks`: what an operator had to allow. `files`: how many hold weights.
    """

    architecture: str
    task: str = ""
    parameters: int | None = None
    quantisation: str = ""
    bits_per_weight: float | None = None
    context: int | None = None
    has_chat_template: bool = False
    weight_bytes: int = 0
    embedding_weight_bytes: int = 0
    layers: int | None = None
    attention: tuple[Attention, ...] = ()
    heads: int | None = None
    hidden: int | None = None
    vocabulary: int | None = None
    pooling: str | None = None
    risks: tuple[str, ...] = ()
    files: int = 0

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Back from `dataclasses.asdict`, also by way of JSON. Fields of another release are left out."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in stored.items() if name in known}
        values["attention"] = tuple(Attention(**layer) for layer in stored.get("attention", ()))
        values["risks"] = tuple(stored.get("risks", ()))
        return cls(**values)
