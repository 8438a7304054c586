"""Where a storm happens: an installation with real engines, one tree of processes that mimics vLLM's, and callers."""

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import engines, ports
from tests.chaos.books import Books
from tests.chaos.leftovers import limit_all
from tests.chaos.load import Load, Target
from tests.chaos.storm import GRACE, Kind, Report, Storm
from tests.installation import Installation, installed

TREE = Path(__file__).with_name("engine_tree.py")
PORTS = 10  # few, so that a dead engine's port is soon another one's, while gateways may still know it
TENANTS = ("research", "sales")
# No thread that spins while others work; one GB for the context is the least that can be set.
VLLM_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
SMOL = Target(model="smollm2", task="chat", engine="llama.cpp")
MINILM = Target(model="minilm", task="embedding", engine="llama.cpp")
LIKE_VLLM = Target(model="tree", task="chat", engine="tree")
TINY = Target(model="tiny", task="chat", engine="vllm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """`vllm`: with a real one, and with the troubles that take long. `database`: a PostgreSQL's URL, else SQLite."""

    seed: int
    seconds: float
    vllm: bool = False
    database: str = ""

    @property
    def targets(self) -> list[Target]:
        return [SMOL, MINILM, LIKE_VLLM, *([TINY] if self.vllm else [])]

    @property
    def kinds(self) -> list[Kind]:
        kinds: list[Kind] = [("up", ""), ("gateway", ""), ("portal", ""), ("supervisor", "")]
        for target in self.targets:
            kinds += [("front", target.model), ("shim", target.model)]
            kinds += [] if target.engine == "llama.cpp" else [("worker", target.model)]  # that is one process alone
        if self.vllm:
            kinds += [("still front", SMOL.model), ("still front", LIKE_VLLM.model)]
            kinds += [] if self.database else [("database", "")]
        return kinds


def storm(weather: Weather, var: Path, say: Callable[[str], None]) -> Report:
    """Return everything, from an empty directory to the last process's end."""
    dice = random.Random(weather.seed)
    with _founded(weather, var, dice) as installation:
        limit_all(installation)
        keys = [installation.manage("createkey", "--tenant", tenant, "--service", "chaos") for tenant in TENANTS]
        load = Load(installation.url, keys, random.Random(weather.seed))
        raging = Storm(installation, Books(var=var, url=weather.database), weather.targets, load, dice, say)
        raging.start(600 if weather.vllm else 120)
        load.begin([*weather.targets, SMOL, LIKE_VLLM])
        raging.rage(weather.seconds, weather.kinds)
        return raging.end(weather.seed)


@contextlib.contextmanager
def _founded(weather: Weather, var: Path, dice: random.Random) -> Iterator[Installation]:
    """Migrated, with tenants and models, not started."""
    first = ports.in_a_row(PORTS, dice)
    settings = {
        "LLAMA_SERVER_COMMAND": f"{sys.executable} {TREE}",
        "XLLAMACPP_PYTHON": str(engines.xllamacpp_python()),
        "ENGINE_PORTS": f"{first}-{first + PORTS - 1}",
        "ENGINE_STOP_GRACE": str(GRACE),
        # Longer than a front is stopped, shorter than callers wait.
        "GATEWAY_FIRST_BYTE_TIMEOUT": "60",
        "GATEWAY_IDLE_TIMEOUT": "40",
        "GATEWAY_TOTAL_TIMEOUT": "90",
        **(VLLM_CPU if weather.vllm else {}),
        **({"DATABASE_URL": weather.database} if weather.database else {}),
    }
    with installed(var, **settings) as installation:
        make = "from portal.accounts.models import Tenant\n" + "\n".join(
            f"Tenant.objects.create(slug={slug!r}, name={slug!r})" for slug in TENANTS
        )
        installation.manage("shell", "--verbosity", "0", "--command", make)
        _register(installation, weather)
        yield installation


def _register(installation: Installation, weather: Weather) -> None:
    chat, thread = str(engines.chat_model()), "--arg=--threads=1"  # threads that wait for each other would spin
    llama = ("--engine", "llama.cpp", "--slots", "4")
    small = (*llama, "--launcher", "xllamacpp", thread)
    installation.manage("registermodel", SMOL.model, *small, "--path", chat, "--context", "1024")
    minilm = ("--path", str(engines.embedding_model()), "--task", "embedding")
    installation.manage("registermodel", MINILM.model, *small, *minilm)
    installation.manage("registermodel", LIKE_VLLM.model, *llama, "--launcher", "llama-server", "--path", chat)
    if weather.vllm:
        tiny = ("--path", str(engines.tiny_llama()), "--context", "1024", "--arg=--enforce-eager")
        installation.manage("registermodel", TINY.model, "--engine", "vllm", *tiny)
