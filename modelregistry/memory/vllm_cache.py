"""How many bytes vLLM's cache takes: its own sums of blocks, groups of layers and what it sets aside. Pure.

As in vLLM 0.32: v1/kv_cache_interface.py (a layer's page), platforms/interface.py (pages of attention as large as a
state), v1/core/kv_cache_utils.py (groups of layers that share blocks, and the check at its start). A layout of memory
in which each layer has a region of its own is taken for granted, as it is by default.

All layers draw their blocks from one pool. A block holds one page of each layer of the largest group, so a smaller
group wastes some of it, and one block is never used.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from modelregistry.files.metadata import Attention, ModelMetadata, RecurrentState

# Tokens of a block, by the kernels that compute: the usual ones on GPUs take 16, some there 128 (CUTLASS's for latent
# vectors, FlashAttention 4 for heads of 256), FlashMLA 64, those on CPUs 128.
BLOCK = 16
LARGE_BLOCK = 128
LATENT_BLOCK = 64
# DeepSeek V4's: of pressed tokens, of groups that are not pressed yet by their window, and what pages are multiples of.
V4_BLOCK = 256
V4_PARTIAL = {8: 4, 128: 8}
V4_ALIGNED = 576
HYBRID_LATENT_BLOCK = 128
LATENT_SCALES = 80
# So many batches are under way at a time (asynchronous scheduling); until one is through, what it reads stays.
BATCHES = 2
UNEVEN = 1.5  # a group may be so much larger than the smallest before it is split


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSetting:
    """How an engine keeps its cache. `element`: bytes of a number of keys and values; `number`: of the model's own.

    `cards`: over which heads are split. `context`: tokens of the longest request; `batch`: tokens computed at a time.
    `reuses`: whether beginnings of prompts are kept for others (prefix caching). `block`: tokens of one.
    """

    context: int
    batch: int
    element: float = 2.0
    number: int = 2
    cards: int = 1
    reuses: bool = True
    block: int = BLOCK


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Blocks of layers that share their numbers.

    `own`: of a request of the whole context; `under_way`: what batches under way hold beyond that, of any request;
    `most`: a request never holds more.
    """

    own: int
    under_way: int
    most: int

    def blocks(self, requests: int) -> int:
        return min(requests * self.own + self.under_way, requests * self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """`block`: bytes of one on each card, 0: there is no cache."""

    block: int
    groups: tuple[CacheGroup, ...] = ()

    def blocks(self, requests: int) -> int:
        """Return blocks for so many whole contexts, with the one that is never used."""
        return sum(group.blocks(requests) for group in self.groups) + 1 if self.block else 0

    def bytes(self, requests: int) -> int:
        return self.block * self.blocks(requests)


@dataclass(frozen=True, slots=True)
class _Layer:
    """`page`: bytes of a block, `tokens` in it. `window` as in Attention. `state`: blocks of a request, 0: no state."""

    page: int
    tokens: int
    window: int | None = None
    kind: str = ""
    state: int = 0

    def own(self, setting: CacheSetting) -> int:
        """Block that a request of the whole context holds, what is under way left out."""
        if self.state:
            return self.state if setting.reuses else 1
        if self.kind == "heard":  # as many as are computed at a time, or all of what may be heard
            return -(-max(self.window or 0, setting.batch) // self.tokens)
        if self.window is None:
            return -(-setting.context // self.tokens)
        if self.kind == "chunked":
            return -(-min(self.window, setting.context) // self.tokens)
        # A window begins anywhere within a block.
        return -(-min(self.window - 1, setting.context) // self.tokens) + 1

    def under_way(self, setting: CacheSetting) -> int:
        if self.state or self.window is None or self.kind == "heard":
            return 0
        return -(-BATCHES * setting.batch // self.tokens)

    def most(self, setting: CacheSetting) -> int:
        """Block that a request can hold at all."""
        if self.state or self.window is None or self.kind == "heard":
            return self.own(setting)
        return -(-setting.context // self.tokens) + (self.kind != "chunked")


def plan_cache(facts: ModelMetadata, setting: CacheSetting) -> CachePlan:
    """Plan of what the cache of such an engine is made."""
    layers = _layers(facts, setting)
    if not layers:
        return CachePlan(block=0)
    groups = _groups(layers)
    return CachePlan(
        block=max(sum(layer.page for layer in group) for group in groups),
        groups=tuple(
            CacheGroup(
                own=max(layer.own(setting) for layer in group),
                under_way=max(layer.under_way(setting) for layer in group),
                most=max(layer.most(setting) for layer in group),
            )
            for group in groups
        ),
    )


def token_bytes(facts: ModelMetadata, setting: CacheSetting) -> float:
    """Return bytes of one token of a long request, in those layers that see everything."""
    return sum(_entry(layer, setting) / layer.ratio for layer in facts.attention if layer.window is None)


def state_bytes(facts: ModelMetadata, setting: CacheSetting) -> int:
    """Return bytes of one request, in all layers that keep a state, once."""
    return sum(_state(state, setting) for state in facts.states)


# --- Pages


def _layers(facts: ModelMetadata, setting: CacheSetting) -> list[_Layer]:
    latent = any(layer.kind == "latent" for layer in facts.attention)
    block = max(setting.block, LATENT_BLOCK) if latent else setting.block
    if any(layer.ratio > 1 for layer in facts.attention):
        block = V4_BLOCK
    if facts.states and facts.attention:
        block = _block_beside_states(facts, setting, max(setting.block, HYBRID_LATENT_BLOCK if latent else 0))
    found = [_attention_layer(layer, setting, block) for layer in facts.attention]
    largest = max((layer.page for layer in found), default=0)
    for state in facts.states:
        page = max(_state(state, setting), largest if facts.attention else 0)
        found.append(_Layer(page=page, tokens=0, kind="state", state=state.blocks))
    return found


def _block_beside_states(facts: ModelMetadata, setting: CacheSetting, step: int) -> int:
    """Return tokens of a block whose page is as large as the largest state (_align_hybrid_block_size)."""
    state = max(_state(state, setting) for state in facts.states)
    token = max(_entry(layer, setting) for layer in facts.attention)
    return step * max(1, ceil(state / (step * token)))


def _attention_layer(layer: Attention, setting: CacheSetting, block: int) -> _Layer:
    entry = _entry(layer, setting)
    if layer.kind == "partial":
        block = V4_PARTIAL.get(layer.window or 0, 8)
    elif layer.window is not None and layer.fixed:
        block = LATENT_BLOCK
    page = ceil(entry * block / layer.ratio)
    if block == V4_BLOCK or layer.kind == "partial":
        page = -(-page // V4_ALIGNED) * V4_ALIGNED
    return _Layer(page=page, tokens=block, window=layer.window, kind=layer.kind)


def _entry(layer: Attention, setting: CacheSetting) -> float:
    """Return bytes of an entry, on each card: at least one head is on each; a latent vector is on all of them."""
    heads = -(-layer.kv_heads // setting.cards)
    # A latent vector in 8 bits has its scales and its rotary part in 16 bits beside it: 656 bytes for 576 numbers.
    more = LATENT_SCALES if layer.kind == "latent" and setting.element == 1 else 0
    return layer.fixed or heads * (layer.key_dim + layer.value_dim) * setting.element + more


def _state(state: RecurrentState, setting: CacheSetting) -> int:
    numbers = state.inputs * setting.number + state.memory * (state.number_bytes or setting.number)
    return ceil(numbers / setting.cards)


# --- Groups


def _groups(layers: Sequence[_Layer]) -> list[list[_Layer]]:
    """Return layers that share their blocks' numbers: all that need as many, else a few that are dealt out evenly."""
    if len({(layer.window, layer.kind if layer.window else "", layer.state, layer.tokens) for layer in layers}) == 1:
        return [list(layers)]
    if any(layer.kind == "partial" for layer in layers):
        return _pack_layers(layers)
    alike = _group_alike(_of_one_size(layers))
    smallest, largest = min(map(len, alike)), max(map(len, alike))
    size = largest if largest < smallest * UNEVEN else smallest
    # A group that is not full wastes its places.
    return [(part * size)[:size] for bucket in alike for part in _deal(bucket, -(-len(bucket) // size))]


def _pack_layers(layers: Sequence[_Layer]) -> list[list[_Layer]]:
    """Group pages that differ and are packed one behind the other (DeepSeek V4, _get_packed_kv_cache_groups).

    A group of each kind; those with pages of one size are dealt out into groups no longer than the longest with
    several.
    """
    kinds: dict[tuple[object, ...], list[_Layer]] = {}
    for layer in layers:
        kinds.setdefault((layer.window, layer.tokens), []).append(layer)
    longest = max(
        (max(Counter(kind).values()) for kind in kinds.values() if kind[0].window and len(set(kind)) > 1), default=0
    )
    found = []
    for kind in kinds.values():
        count = -(-len(kind) // longest) if longest and len(set(kind)) == 1 else 1
        found += _deal(kind, count)
    return found


def _of_one_size(layers: Sequence[_Layer]) -> list[_Layer]:
    """Make pages of one size: of more tokens where that goes up, else padded (unify_kv_cache_spec_page_size)."""
    largest = max(layer.page for layer in layers)
    return [
        _Layer(
            page=largest,
            tokens=layer.tokens * (largest // layer.page) if largest % layer.page == 0 else layer.tokens,
            window=layer.window,
            kind=layer.kind,
            state=layer.state,
        )
        for layer in layers
    ]


def _group_alike(layers: Iterable[_Layer]) -> list[list[_Layer]]:
    found: dict[_Layer, list[_Layer]] = {}
    for layer in layers:
        found.setdefault(layer, []).append(layer)
    return list(found.values())


def _deal(bucket: list[_Layer], count: int) -> list[list[_Layer]]:
    return [bucket[start::count] for start in range(count)]
