"""Which replica of a model has read most of a prompt before. No I/O.

An engine keeps what it computed for the beginnings of prompts: a system prompt, the turns of a conversation. Another
replica would have to read all of it again, which takes most of the time to the first token. So a call goes where it
costs the fewest seconds, of which there are three kinds:

- reading what that replica has not read before, at the speed that was learned;
- waiting until it has read what it was sent before;
- running beside its other calls, at the price that was learned: what prompts took longer than expected.

One cost in one unit needs no threshold between "follow the prefix" and "follow the load": a replica that is popular
becomes expensive call by call, and a replica with nothing to do reads the prompt itself.

Prompts are known by the raw bytes of the request from the member on that holds them: no tokenizer, no tree, and the
parts of a JSON text are in the same order when the same program sends them again. Their beginnings are marked by a
chain of checksums at EDGES. The chain begins with the tenant, as the engines' caches do (`requests.cache_members`).
What is remembered of a replica may be gone there, or there may be more: a wrong guess costs time, nothing else.

A worker knows what it has sent itself. Of two workers each guesses right about half as often for conversations whose
calls come over several connections; prompts that many share are known to both.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.formats.requests import Call, Endpoint

KB = 1024
# Bytes of a prompt at which it is marked: each KB (some 250 tokens of English, 230 of Japanese) and from 16 on in steps
# that grow with it, so that long ones cost little more to remember. What lies beyond the last is of no prefix.
EDGES = (*range(KB, 17 * KB, KB), *(round(16 * 1.25**step) * KB for step in range(1, 13)))
# Marks of a model that are remembered, twice: the older half is forgotten at once. 4 M tokens of prompts, and some
# 3 MB of memory. More than engines keep does no harm: the replica that had read it is as good as another.
REMEMBERED = 16_384
# Replicas that a model has had, after which all is forgotten, as the masks would grow.
MAX_BITS = 62
# A picture is a thousand tokens or two, however many bytes it has.
PICTURED = 16 * KB
# Until these are learned, and where all clients wait for whole answers of vLLM, of which the first token is not seen: a
# prompt of 8 KB is worth going to a replica that has 13 calls more.
FIRST_SECONDS_PER_BYTE = 1 / (4 * 5000)
FIRST_SECONDS_PER_CALL = 0.03
# Bytes; shorter prompts say more about the way to the engine than about its speed.
LEAST_LEARNED = 2 * KB
SAMPLES = 32  # of which the speed is that of the quickest quarter: the others had to wait for something
WEIGHT = 0.02  # of a new call against all before it, in the price


class PromptPrefix(NamedTuple):
    """The beginning of a prompt. `marks`: one for each of EDGES that lies in it.

    `size`: bytes that are to be read, as far as they are text and before the last of EDGES; `is_whole`: that is all.
    """

    marks: Sequence[int]
    size: int
    is_whole: bool = True


class ExpectedCost(NamedTuple):
    """What a call was expected to cost where it went. `unread`: bytes that its replica had not read before."""

    unread: int
    waited: float  # seconds until that begins
    beside: int  # calls that were there already


def has_prefixes(model: Model, endpoint: Endpoint) -> bool:
    """Return whether the model has several replicas that keep what they read for others of its tenant."""
    if len(model.replicas) < 2 or model.external or endpoint.costs != "prompt and answer":
        return False
    # llama.cpp keeps what it read only for a model of a single tenant, see `requests.cache_members`.
    return model.stops_unary or model.has_one_tenant


def read_prefix(call: Call, endpoint: Endpoint, tenant: int) -> PromptPrefix:
    """Mark the prompt of a call: about 0.3 µs for each KB."""
    body = call.body
    begin = max(0, body.find(b'"%s"' % endpoint.prompt_name.encode()))
    size = len(body) - begin
    read = min(size, EDGES[-1])
    if size > PICTURED and b";base64," in body:
        read = PICTURED
    own = call.fields.get("cache_salt")
    salt = f"{tenant}:{own}".encode(errors="replace") if isinstance(own, str) else b"%d" % tenant
    mark = xxh3_64_intdigest(salt)
    marks, before = [], begin
    for edge in EDGES[: bisect_right(EDGES, size)]:
        mark = xxh3_64_intdigest(body[before : begin + edge], mark)
        marks.append(mark)
        before = begin + edge
    return PromptPrefix(marks, read, is_whole=read == size)


class PrefixMemory:
    """What the replicas of one model have read, as far as this worker has sent it there."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._recent: dict[int, int] = {}  # a bit for each replica that has read the prompt up to this mark
        self._older: dict[int, int] = {}
        self._bits: dict[int, int] = {}  # by the replica's id
        self._next_bit = 0
        self._unread: dict[int, int] = {}  # bytes that it was sent and has still to read, by its id
        self._sent: dict[int, int] = {}  # bytes that it had not read before, by its id
        self._samples: list[float] = []
        self._seconds_per_byte = FIRST_SECONDS_PER_BYTE
        self._excess = FIRST_SECONDS_PER_CALL  # seconds of a call that were not expected
        self._beside = 1.0  # calls that it ran beside

    def keep_only(self, replicas: Iterable[int]) -> None:
        """Forget all others, by their ids: what an engine had read is gone when it was stopped."""
        for gone in self._bits.keys() - set(replicas):
            del self._bits[gone]
            self._unread.pop(gone, None)
            self._sent.pop(gone, None)
        if self._next_bit > MAX_BITS:
            self._recent, self._older, self._bits, self._next_bit = {}, {}, {}, 0

    def place(
        self, prefix: PromptPrefix, replicas: Sequence[Replica], running: Callable[[int], int]
    ) -> tuple[Replica, ExpectedCost]:
        """Return the replica where the call costs least, and remember that its prompt goes there.

        `replicas`: one at least. `running`: the calls that one has, by its id.
        """
        known, per_byte, per_call = self._known(prefix), self._seconds_per_byte, self.seconds_per_call
        bits_of, unread_of, sent_of, size = self._bits, self._unread, self._sent, prefix.size
        best, least_sent = inf, 0
        for replica in replicas:
            id, read = replica.id, 0
            bit = bits_of.get(id, 0)
            for edge, bits in known:
                if bits & bit:
                    read = edge
            unread = size - read if size > read else 0
            waited, beside = unread_of.get(id, 0) * per_byte, running(id)
            # Of those that cost the same, to the millisecond, the one that has been sent least.
            cost, sent = (unread * per_byte + waited + beside * per_call) * 1000 // 1, sent_of.get(id, 0)
            if cost < best or (cost == best and sent < least_sent):
                best, least_sent, chosen = cost, sent, replica
                expected = unread, waited, beside
        found = ExpectedCost(*expected)
        self._note(prefix, chosen, found)
        return chosen, found

    def add_unread(self, replica: int, size: int) -> None:
        """Count so many bytes that the replica with this id has still to read; less than 0: that it need not any more.

        A lease adds them and takes them away again, whatever becomes of its call.
        """
        left = self._unread.get(replica, 0) + size
        if left > 0:
            self._unread[replica] = left
        else:
            self._unread.pop(replica, None)

    def _note(self, prefix: PromptPrefix, replica: Replica, expected: ExpectedCost) -> None:
        bit, recent = self._bit(replica.id), self._recent
        for mark in reversed(prefix.marks):
            bits = recent.get(mark, 0)
            if bits & bit:
                break  # as all before it, which were noted with it
            recent[mark] = bits | bit
        if len(recent) > REMEMBERED:
            self._recent, self._older = {}, recent
        self._sent[replica.id] = self._sent.get(replica.id, 0) + expected.unread

    def learn(self, expected: ExpectedCost, seconds: float) -> None:
        """Learn from how long the first token of a call took, from when the engine was sent it."""
        if expected.unread >= LEAST_LEARNED:
            self._samples = [*self._samples[1 - SAMPLES :], seconds / expected.unread]
            self._seconds_per_byte = sorted(self._samples)[len(self._samples) // 4]
        excess = max(0.0, seconds - expected.waited - expected.unread * self._seconds_per_byte)
        self._excess += WEIGHT * (excess - self._excess)
        self._beside += WEIGHT * (expected.beside - self._beside)

    @property
    def seconds_per_byte(self) -> float:
        """Of reading a prompt."""
        return self._seconds_per_byte

    @property
    def seconds_per_call(self) -> float:
        """What a call takes longer for each other one beside it."""
        return self._excess / self._beside if self._beside > 1 else self._excess

    def _bit(self, replica: int) -> int:
        found = self._bits.get(replica)
        if found is None:
            found = self._bits[replica] = 1 << self._next_bit
            self._next_bit += 1
        return found

    def _known(self, prefix: PromptPrefix) -> list[tuple[int, int]]:
        """Return how many bytes are known to which replicas (bits), the least first; those of a longer part too."""
        recent, older, found = self._recent, self._older, []
        alive, size = -1, 0
        for mark, edge in zip(prefix.marks, EDGES, strict=False):
            bits = recent.get(mark, 0)
            if bits != alive:  # it is on most marks of a prompt that goes on
                bits |= older.get(mark, 0)
            still = alive & bits
            if still != alive:
                found.append((size, alive))
                alive = still
                if not alive:
                    return found
            size = edge
        found.append((size, alive))
        return found


class PrefixRouter:
    """The memories of all models that have several replicas."""

    def __init__(self) -> None:
        """Begin with none."""
        self._memories: dict[str, PrefixMemory] = {}  # by the model's name

    def of(self, model: str) -> PrefixMemory:
        """Return what the replicas of the model of this name have read."""
        memory = self._memories.get(model)
        if memory is None:
            memory = self._memories[model] = PrefixMemory()
        return memory

    def keep_only(self, find_model: Callable[[str], Model | None]) -> None:
        """Forget the models and the replicas that are no more. Call it for a new catalogue."""
        for name in list(self._memories):
            model = find_model(name)
            if model is None:
                del self._memories[name]
            else:
                self._memories[name].keep_only(one.id for one in model.replicas)
