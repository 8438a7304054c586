"""What the files of a model say about it, as plain values. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from modelregistry.wire_bounds import AtMost, Name, Names

# The forms of a model's files: a directory in Hugging Face's form, or one file (or its parts) of llama.cpp's.
CHECKPOINT, GGUF = "checkpoint", "gguf"
MOST_LAYERS = 10_000  # as a message may have; files are read by `bounds`


def gettext_noop(sentence: str) -> str:
    """Mark a sentence for translators, who find it by this function's name. Who shows it to people translates it."""
    return sentence


@dataclass(frozen=True, slots=True)
class Attention:
    """What one layer remembers of each token: `kv_heads` × (`key_dim` + `value_dim`) numbers.

    `window`: of the last so many tokens only; None: of all. DeepSeek's latent attention (MLA) is one head with the
    latent vector and the rotary part as its key, and no value. `kind`: "" as any; "latent" (the same on every card);
    "chunked" (its window begins again every so many tokens); "heard" (of what Whisper heard, apart from what is said);
    "partial" (groups of tokens that are not pressed together yet). `ratio`: so many tokens share one entry. `fixed`:
    bytes of an entry, whatever type the cache has.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    kind: Name = ""
    ratio: int = 1
    fixed: int = 0


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """What one layer keeps of a request however long it is (Mamba, linear attention, short convolutions).

    `inputs`: numbers of its last inputs, `memory`: numbers of its state proper. `number_bytes`: of the latter; 0: as
    large as the model's own numbers. `blocks`: how many of it vLLM holds of a request at a time, so that its beginning
    can be used again (2; 3 where it also keeps one from within a prompt).
    """

    inputs: int
    memory: int
    number_bytes: int = 0
    blocks: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What a model's files say. None or "": they do not say. Sizes in bytes, context in tokens.

    `attention`: what has a KV cache, one or more for each such layer; encoders (BERT) have none. `states`: one for each
    layer that keeps a state of fixed size of each request. `missing`: what the files would have to say for that
    to be known, by names of config.json; empty: nothing. `cache_type`: of the keys and values, as the
    files declare it ("fp8"); "": as the model's own numbers.
    `whole`: tokens of the largest picture, film or recording, which vLLM computes in one piece; 0: piece by piece.
    `experts`: bytes of the experts' weights in each layer of a GGUF file that has some, which may be kept in RAM.
    `weight_bytes`: of the tensors on disk. `embedding_weight_bytes`: of these, the token embedding, which quantising at
    start leaves as it is. `output_weight_bytes`: of a GGUF file, the output where it is not computed with the
    embedding. `unused_weight_bytes`: of these, the layers that guess tokens ahead (MTP), which vLLM loads
    only where an argument asks for them. `task`: what the architecture was made for.
    `feed_forward`: of a GGUF file, numbers of a token within the widest feed-forward part, those of all experts that
    work on it (`experts_per_token`) together. `risks`: what an operator had to allow. `files`: how many hold weights.
    `licence` and `languages` (codes such as "ja"): as its publisher named them.
    """

    architecture: Name
    task: Name = ""
    parameters: int | None = None
    quantisation: Name = ""
    bits_per_weight: float | None = None
    context: int | None = None
    has_chat_template: bool = False
    weight_bytes: int = 0
    embedding_weight_bytes: int = 0
    output_weight_bytes: int = 0
    layers: int | None = None
    attention: Annotated[tuple[Attention, ...], AtMost(MOST_LAYERS)] = ()
    states: Annotated[tuple[RecurrentState, ...], AtMost(MOST_LAYERS)] = ()
    cache_type: Name = ""
    missing: Names = ()
    experts: Annotated[tuple[int, ...], AtMost(MOST_LAYERS)] = ()
    whole: int = 0
    unused_weight_bytes: int = 0
    heads: int | None = None
    hidden: int | None = None
    feed_forward: int | None = None
    experts_per_token: int = 0
    vocabulary: int | None = None
    pooling: Name | None = None
    risks: Names = ()
    files: int = 0
    licence: Name = ""
    languages: Names = ()

    def stored(self) -> dict[str, Any]:
        """Return it for JSON; what is as usual is left out, as one layer is like the other."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("attention", "states"):
            values[name] = [_unusual_fields(layer) for layer in values[name]]
        return values

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Make it from `stored` or `dataclasses.asdict`, also through JSON. Fields of another release are left out."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in stored.items() if name in known}
        values["attention"] = tuple(Attention(**layer) for layer in stored.get("attention", ()))
        values["states"] = tuple(RecurrentState(**layer) for layer in stored.get("states", ()))
        for name in ("risks", "missing", "experts", "languages"):
            values[name] = tuple(stored.get(name, ()))
        return cls(**values)


def _unusual_fields(layer: Attention | RecurrentState) -> dict[str, Any]:
    return {field.name: value for field in fields(layer) if (value := getattr(layer, field.name)) != field.default}
