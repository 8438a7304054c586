"""A storm over a cluster: six models on three hosts whose parts are killed and cut off while callers call."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modelregistry.cluster.head import HeadDirectory
from modelregistry.process import process
from modelregistry.process.process import Life, Run, Runs
from tests import engines
from tests.chaos.books import Books, disagreements
from tests.chaos.field import TREE
from tests.chaos.load import Call, Load, Target
from tests.installation import Installation, installed
from tests.ray.clusters import REDIS_PORT, Cluster, Host, cluster
from tests.waiting import until

LEASE = 60  # seconds, shorter than the longest cut: then a host's fence stops its engines
HOSTS = ("a", "b", "c")
TREES = {"tree-1": 2, "tree-2": 2, "tree-3": 1, "tree-4": 1}  # replicas of the stand-ins
SMOL = Target(model="smollm2", task="chat", engine="llama.cpp")
MINILM = Target(model="minilm", task="embedding", engine="llama.cpp")
TARGETS = [*(Target(model=name, task="chat", engine="tree") for name in TREES), SMOL, MINILM]
TROUBLES = ("agent", "raylet", "engine", "cut", "long cut", "power", "head", "Redis", "controller")
LIVING = (Life.RUNNING, Life.ENDING)
SILENT_HOSTS = "select name from modelregistry_host where clustered and silent_since is not null"
QUIET = (6.0, 14.0)  # seconds between two troubles
MENDED_WITHIN = 180.0  # seconds
SETTINGS = {
    "MADOGUCHI_HOST": "portal",
    "HOST_LEASE": str(LEASE),
    "ENGINE_STOP_GRACE": "5",
    "GATEWAY_FIRST_BYTE_TIMEOUT": "60",
    "GATEWAY_IDLE_TIMEOUT": "40",
    "GATEWAY_TOTAL_TIMEOUT": "90",
}


@dataclass
class Report:
    """What a storm brought. `wrong`: of a good one there is nothing."""

    troubles: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    doubled: Counter[str] = field(default_factory=Counter)  # outcomes of calls of models with two replicas
    wrong: list[str] = field(default_factory=list)


class Storm:
    """`made`: the cluster, `installation`: the portal, gateway and controller, which run beside its head."""

    def __init__(self, made: Cluster, installation: Installation, dice: random.Random) -> None:
        self.made = made
        self.installation = installation
        self.dice = dice
        self.report = Report()

    def rage(self, seconds: float) -> None:
        """Make trouble, one after the other, each kind as often as the others."""
        until_then = time.monotonic() + seconds
        while time.monotonic() < until_then:
            for trouble in self.dice.sample(TROUBLES, len(TROUBLES)):
                if time.monotonic() >= until_then:
                    break
                time.sleep(self.dice.uniform(*QUIET))
                self.report.troubles[trouble] += 1
                print(f"{time.strftime('%H:%M:%S')} {trouble}", flush=True)
                with contextlib.suppress(ValueError, IndexError, ProcessLookupError):  # it is not there to be killed
                    self._make(trouble, self.made.hosts[self.dice.choice(HOSTS)])

    def _make(self, trouble: str, host: Host) -> None:
        match trouble:
            case "agent":
                os.kill(host.agent(), signal.SIGKILL)
            case "raylet":
                os.kill(host.raylet(), signal.SIGKILL)
            case "engine":
                [_, run] = self.dice.choice(self.living())
                os.kill(run.engine.pid, signal.SIGKILL)
            case "cut" | "long cut" | "power":
                _cut(host, {"cut": 10, "long cut": 75, "power": 20}[trouble], kill=trouble == "power")
            case "head" | "Redis":
                _restart_head(self.made, lose_state=trouble == "Redis")
                # Leases are renewed through the head: it may be away for less than they last, and then for once.
                with contextlib.suppress(AssertionError):
                    until(self.all_heard, LEASE)
            case "controller":
                os.kill(self.installation.pid_of("manage.py supervise"), signal.SIGKILL)

    # --- What is there

    def all_heard(self) -> bool:
        """Return whether all hosts answer the controller."""
        return not self.installation.read(SILENT_HOSTS)

    def living(self) -> list[tuple[str, Run]]:
        """Return the runs of engines that live, with their hosts."""
        return [
            (name, run)
            for name, host in self.made.hosts.items()
            for run in Runs(host.directory.runs).all()
            if process.life_of(run) in LIVING
        ]

    def settled(self) -> bool:
        """Return whether each model has its replicas, all are ready, and no other engine lives."""
        wanted = {**TREES, SMOL.model: 1, MINILM.model: 1}
        rows = Books(var=self.installation.var).replicas()
        ready = Counter(row["model"] for row in rows if row["state"] == "ready")
        return ready == wanted and len(self.living()) == sum(wanted.values()) == len(rows)

    def settle(self) -> None:
        began = time.monotonic()
        try:
            until(self.settled, MENDED_WITHIN)
        except AssertionError:
            rows = [(row["model"], row["state"], row["detail"]) for row in Books(var=self.installation.var).replicas()]
            self.report.wrong.append(f"not as it should be after {MENDED_WITHIN:g} s: {rows}, {self.living()}")
        print(f"all as it should be after {time.monotonic() - began:.1f} s", flush=True)

    def judge(self, calls: list[Call]) -> None:
        """Compare what callers heard with the books, and look for what was left."""
        books = Books(var=self.installation.var)
        with contextlib.suppress(AssertionError):
            until(lambda: not disagreements(calls, books.usage()), 60)
        self.report.wrong += [str(one) for one in disagreements(calls, books.usage())]
        for call in calls:
            self.report.wrong += [f"{call.name} of {call.model}: {what}" for what in call.wrong]
            self.report.outcomes[call.outcome] += 1
            if TREES.get(call.model, 1) > 1:
                self.report.doubled[f"{call.outcome} {call.why}".strip()] += 1
        counts = Counter((run.label["model"], run.label["replica"]) for _, run in self.living())
        self.report.wrong += [f"{count} engines of replica {who}" for who, count in counts.items() if count > 1]
        for name, host in self.made.hosts.items():
            known = {run.run_id for _, run in self.living()}
            strays = [pid for pid in host.find(TREE.name) if not any(one in _environment(pid) for one in known)]
            self.report.wrong += [f"an orphan on {name}: {pid}" for pid in strays]


def _cut(host: Host, seconds: float, *, kill: bool) -> None:
    host.space.cut()
    if kill:
        host.space.kill_all()
    time.sleep(seconds)
    host.space.mend()
    if kill:
        host.start()


def _restart_head(made: Cluster, *, lose_state: bool) -> None:
    made.kill_head()
    if lose_state:
        made.redis.kill()
        made.redis.wait()
        shutil.rmtree(made.directory / "redis")
        made.start_redis()
    made.start_head()


def _environment(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return ""


@contextlib.contextmanager
def founded(var: Path) -> Iterator[tuple[Cluster, Installation]]:
    """Provide a cluster of three hosts, and what serves beside its head: started, with models and a key."""
    commands = {
        "llama-server": f"{sys.executable} {TREE}",
        "xllamacpp": str(engines.xllamacpp_python()),
    }
    with cluster(*HOSTS, commands=commands) as made, installed(var, **SETTINGS) as installation:
        space = made.spaces[0]
        installation.before = tuple(space.inside([]))
        HeadDirectory(path=made.directory / "head", address=space.address, redis=f"127.0.0.1:{REDIS_PORT}").save()
        (var / "cluster").symlink_to(made.directory)
        register(installation)
        yield made, installation


def register(installation: Installation) -> None:
    """Register six models that may run on any host, and keep the machine of the portal free of engines."""
    make = "from modelregistry.models import Host; from portal.accounts.models import Tenant\n"
    make += "Host.objects.create(name='portal', maintenance=True)\n"
    make += "Tenant.objects.create(slug='research', name='research')"
    installation.manage("shell", "--verbosity", "0", "--command", make)
    llama = ("--engine", "llama.cpp", "--slots", "4")
    for name, replicas in TREES.items():
        path = ("--path", str(engines.chat_model()), "--launcher", "llama-server", "--replicas", str(replicas))
        installation.manage("registermodel", name, *llama, *path)
    small = (*llama, "--launcher", "xllamacpp", "--arg=--threads=1")  # threads that wait for each other would spin
    chat = ("--path", str(engines.chat_model()), "--context", "1024")
    installation.manage("registermodel", SMOL.model, *small, *chat)
    vectors = ("--path", str(engines.embedding_model()), "--task", "embedding")
    installation.manage("registermodel", MINILM.model, *small, *vectors)


def storm(var: Path, seconds: float, seed: int, say: Callable[[str], None] = print) -> Report:
    """Return what a storm of so many seconds brought, from an empty directory to the last process's end."""
    with founded(var) as (made, installation):
        installation.start()
        raging = Storm(made, installation, random.Random(seed))
        raging.settle()
        key = installation.manage("createkey", "--tenant", "research", "--service", "storm")
        load = Load(installation.url, [key], random.Random(seed), enter=made.spaces[0].enter)
        load.begin(TARGETS)
        raging.rage(seconds)
        raging.settle()
        load.end()
        raging.judge(load.calls)
        report = raging.report
        say(f"troubles {dict(report.troubles)}; calls {dict(report.outcomes)}")
        say(f"calls of models with two replicas {dict(report.doubled)}")
        if report.wrong:
            say(installation.log[-20_000:])
        return report
