"""Who may call what, within which limits, served where: immutable, in memory, replaced as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from apiproxy.dataplane.client_address import Network
from apiproxy.dataplane.errors import Language
from apiproxy.dataplane.limits.units import Unit
from apiproxy.dataplane.loops import UNWATCHED, LoopPolicy
from apiproxy.dataplane.sampling import ParameterPreset

Scope = Literal["tenant", "user", "member", "key"]


class Counter(NamedTuple):
    """What a limit counts. A limit that is changed or created again goes on with the counter of its predecessor.

    So does a limit of one's own in place of a default: it is the same counter.
    """

    scope: Scope
    owner: int  # of a member, the person
    model: int | None  # None: all models together
    unit: Unit
    window: str  # "minute", "day", "month"; "": what is under way now
    tenant: int | None = None  # of a member: whose keys they use. Else None


@dataclass(frozen=True, slots=True)
class Limit:
    counter: Counter
    amount: int
    zone: ZoneInfo  # in which days and months begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A usable API key. `models` = ids it is restricted to; None = whatever its tenant may use.

    `networks`: from where it may be used; none = from everywhere. `batch`: no person waits for its answers.
    `canary`: of Madoguchi's own checks, which choose their replica, use any model, and are not under its presets.
    `weight`: of its tenant, see `fair_queue`. `service_weight`: how many people a service key counts as.
    `takes_user_headers`: its calls may name their end user in headers, see `openwebui`; `user_secret`: with which they
    have to be signed, or nothing (`former_user_secrets` will do while API_KEY_SECRET is replaced). `separates_users`:
    each of its end users is a caller of their own in the queue.
    """

    id: int
    tenant: int
    user: int | None
    language: Language
    expires: float | None  # Unix seconds
    models: frozenset[int] | None
    limits: tuple[Limit, ...]
    networks: tuple[Network, ...]
    batch: bool
    canary: bool = False
    weight: float = 1.0
    service_weight: float = 4.0
    takes_user_headers: bool = False
    user_secret: bytes = field(default=b"", repr=False)
    former_user_secrets: tuple[bytes, ...] = field(default=(), repr=False)
    separates_users: bool = False
    guarded: bool = True  # against word loops, as each model's policy says


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """An engine that answers now."""

    id: int
    url: str  # scheme://host:port[/prefix]
    api_key: str
    upstream_model: str
    slots: int | None = None  # calls that it works on at a time; None: unknown
    supports_priority: bool = False  # it sorts waiting calls by their `priority`
    host: int = 0  # the machine that it runs on, which its address need not show
    health: str = "/health"  # a path under which it answers at once, however busy it is
    ends_loops: bool = False  # it takes `repetition_detection`
    engine: str = ""  # what runs it, and its version; "": unknown, as of an external server


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds that a model's engines are given.

    `connect`: to be reached. `first_byte`: from the request to the answer's first byte; `idle`: between any two bytes
    after. `total`: from the call's beginning to its end, attempts on other replicas included.
    """

    connect: float
    first_byte: float
    idle: float
    total: float


class Retirement(NamedTuple):
    """From `at` on (Unix seconds), the beginning of `day` in the server's time zone, a model is refused."""

    at: float
    day: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """`stops_unary`: the engine stops generating when the client of a call without `stream` leaves.

    `tenants` = ids of those that may use it; None = all. `loading_on`: hosts on which it is asleep, starting
    or about to start, so worth waiting for while they live. `no_room`: it is nowhere, as others that are kept loaded,
    or other work, take its room. `retires`: None = never. `hosts`: over how many each of its replicas is split.
    """

    id: int
    name: str
    task: str
    created: int
    context: int | None
    external: bool
    stops_unary: bool
    tenants: frozenset[int] | None
    loading_on: frozenset[int]
    retires: Retirement | None
    timeouts: Timeouts
    replicas: tuple[Replica, ...]
    loops: LoopPolicy = UNWATCHED
    presets: tuple[ParameterPreset, ...] = ()
    no_room: bool = False
    hosts: int = 1

    @property
    def has_one_tenant(self) -> bool:
        """Return whether one tenant alone may use it: llama.cpp has one cache for all callers."""
        return self.tenants is not None and len(self.tenants) == 1


@dataclass(frozen=True, slots=True)
class Catalogue:
    revision: int
    keys: Mapping[str, Key] = field(default_factory=dict)  # by digest
    digests: Mapping[int, str] = field(default_factory=dict)  # of `keys`, by key id
    models: Mapping[str, Model] = field(default_factory=dict)  # by public name
    aliases: Mapping[str, str] = field(default_factory=dict)  # of `models`, by the other name

    def key(self, digest: str, now: float) -> Key | None:
        """Return the key with this digest, unless it has expired by `now` (Unix seconds)."""
        key = self.keys.get(digest)
        if key is None or (key.expires is not None and key.expires <= now):
            return None
        return key

    def model(self, key: Key, name: str) -> Model | None:
        """Return the model of this name or alias if the key may use it, retired or not."""
        model = self.models.get(name) or self.models.get(self.aliases.get(name, ""))
        return model if model is not None and may_use(key, model) else None

    def offered_models(self, key: Key, now: float) -> dict[str, Model]:
        """Return what the key may call at `now` (Unix seconds): models by their names, then by their aliases."""
        found = {
            model.name: model
            for model in self.models.values()
            if may_use(key, model) and (model.retires is None or now < model.retires.at)
        }
        return found | {alias: found[name] for alias, name in self.aliases.items() if name in found}


def may_use(key: Key, model: Model) -> bool:
    visible = model.tenants is None or key.tenant in model.tenants or key.canary
    return visible and (key.models is None or model.id in key.models)
