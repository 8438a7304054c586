"""What is wrong with a model that is to be registered, found before an engine would find out minutes later."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from modelregistry.engines import argument_rules, arguments
from modelregistry.engines.argument_rules import NamedFile
from modelregistry.engines.arguments import ArgumentFault, Arguments, Options
from modelregistry.engines.base import RegistrationProblem, Spec
from modelregistry.engines.registry import engine_named, launched_by
from modelregistry.files import bounds, model_files, unreadable
from modelregistry.files.metadata import ModelMetadata, gettext_noop
from modelregistry.files.regular import open_regular_file
from modelregistry.files.unreadable import UnreadableModel

# Set by the supervisor for each replica; a second value would win and move the engine to an unknown address, open it to
# every interface, or let it answer without a key. A file of arguments (--config) could hold any of them. An engine that
# takes the model from elsewhere, or serves several models, is no replica of this one.
RESERVED = frozenset(
    [
        *("--host", "--port", "--uds", "--api-key", "--api-key-file", "--interrupt-requests", "--config"),
        *("--model", "-m", "--alias", "-a", "--model-alias", "--served-model-name", "--config-file"),
        *("--model-url", "--hf-repo", "--hf-file", "--docker-repo", "--hf-model-repo-id", "--models-dir"),
        *("--models-preset", "--headless", "--grpc", "--node-rank", "--master-addr", "--master-port"),
    ]
)
# The gateway calls engines in plain HTTP, at their root; the traffic stays on this machine or in the hosts' network.
MOVING = frozenset(
    [
        *("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-cert-reqs", "--ssl-ciphers"),
        *("--enable-ssl-refresh", "--ssl-key-file", "--ssl-cert-file", "--api-prefix"),
    ]
)
# The engine would print something and exit, at each start.
ENDING = frozenset(["--help", "--version", "--list-devices", "--cache-list", "--completion-bash"])
# More than one process or host for one replica, in ways that no plan counts.
SPREADING = ("--data-parallel-size",)
STAGES = "--pipeline-parallel-size"  # the same on one host; over several it is counted
RISKS = [*model_files.RISKS, argument_rules.OUTSIDE]
LONGEST_TEMPLATE = 2**20  # bytes; the longest chat templates have 0.1 MB
# vLLM's load formats that read pickles, or may.
PICKLING = frozenset(["pt", "npcache", "auto", "hf"])
# Arguments by which an operator takes the context beyond what the model was trained for.
STRETCHING = frozenset(
    [
        *("--hf-overrides", "--rope-scaling", "--rope-scale", "--rope-theta", "--yarn-orig-ctx", "--override-kv"),
        *("--rope-freq-base", "--rope-freq-scale", "--rope-scaling-type"),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A model as an operator describes it. What a form or a JSON field delivers is not checked yet: hence `object`."""

    engine: str
    launcher: str
    task: str
    path: str
    url: str = ""
    args: object
    context: int | None
    slots: int | None = None
    gpus: object
    tensor_parallel: int
    nodes: int = 1
    allowed_risks: object
    engine_version: str = ""
    connect_timeout: float | None = None
    first_byte_timeout: float | None = None
    idle_timeout: float | None = None
    total_timeout: float | None = None


def find_problems(
    model: Registration,
    *,
    look_at_path: bool,
    look_at_args: bool = True,
    look_at_argument_files: bool | None = None,
    installed: Collection[str] | None = None,
    started_by: str = "",
    options: Options | None = None,
) -> dict[str, ValidationError]:
    """Return one error for each field that cannot be right; empty: fine. Reads the headers of the model's files.

    Its code says for programs what is wrong, its `params` of what.

    `look_at_argument_files`: whether files that arguments name are on this machine; as `look_at_path` if not given.
    `started_by`: the launcher that will be taken where `launcher` leaves it open, as far as is known; `options`: what
    that takes, None: not known here. `installed`: the versions of it that this machine has, None: not known.
    """
    parsed = read_arguments(model.engine, model.launcher or started_by, _only_texts(model.args), options)
    risks = _known_risks(model.allowed_risks)
    faults: dict[str, ValidationError | None] = {
        "engine_version": _version_fault(model, installed),
        "gpus": _gpus_fault(model.gpus, max(1, _count_devices(model, parsed) // model.nodes)),
        "nodes": _nodes_fault(model, parsed),
        "allowed_risks": _risk_list_fault(model.allowed_risks),
        "args": _list_fault(model.args),
        "total_timeout": _timeout_fault(model),
    }
    if look_at_args and not faults["args"]:
        faults["args"] = find_argument_fault(
            model.engine, parsed, risks, model.tensor_parallel, model.slots, nodes=model.nodes
        )
        if not faults["args"] and (look_at_path if look_at_argument_files is None else look_at_argument_files):
            faults["args"] = find_missing_file(parsed)
    found = _engine_problems(model) | {field: fault for field, fault in faults.items() if fault}
    if engine_named(model.engine).external:
        return found
    if look_at_path:
        return _file_problems(model, risks, parsed) | found
    return _unseen_path_problems(model.path) | found


def _engine_problems(model: Registration) -> dict[str, ValidationError]:
    """Return what the engine and its launcher cannot do, whatever the files are."""
    engine = engine_named(model.engine)
    found: dict[str, ValidationError] = {}
    if model.url and not engine.external:
        sentence = _("Only an external engine has a URL; this one is started here, from a path.")
        found["url"] = ValidationError(sentence, code="needless-url")
    if model.launcher and (model.launcher not in engine.launchers() or engine.only_launcher):
        sentence = _("This engine has no such launcher to choose.")
        found["launcher"] = ValidationError(sentence, code="no-such-launcher")
    spec = Spec(
        engine=model.engine,
        name="",
        path=model.path,
        launcher=model.launcher,
        task=model.task,
        version=model.engine_version,
    )
    return found | _errors(engine.as_run_by(model.launcher).check_registration(spec, model.url))


def _errors(problems: Iterable[RegistrationProblem]) -> dict[str, ValidationError]:
    return {
        problem.field: ValidationError(_(problem.sentence), code=problem.code, params=dict(problem.values))
        for problem in problems
    }


def _known_risks(allowed_risks: object) -> list[str]:
    return [risk for risk in allowed_risks if risk in RISKS] if isinstance(allowed_risks, list) else []


def _risk_list_fault(allowed_risks: object) -> ValidationError | None:
    if isinstance(allowed_risks, list) and len(_known_risks(allowed_risks)) == len(allowed_risks):
        return None
    risks = ", ".join(f'"{risk}"' for risk in RISKS)
    return ValidationError(_("Allowed risks are a list of %(risks)s."), code="unknown-risks", params={"risks": risks})


def _timeout_fault(model: Registration) -> ValidationError | None:
    parts = [model.connect_timeout, model.first_byte_timeout, model.idle_timeout]
    longest = max((part for part in parts if part is not None), default=0.0)
    if model.total_timeout is None or model.total_timeout >= longest:
        return None
    return ValidationError(
        _("The time in all cannot be shorter than one of its parts, %(longest)g seconds."),
        code="shorter-than-a-part",
        params={"longest": longest},
    )


def explain_unreadable(error: UnreadableModel) -> str:
    """Return the sentence of an UnreadableModel in the reader's language."""
    return _(error.sentence) % error.values


def _file_problems(model: Registration, risks: Sequence[str], parsed: Arguments) -> dict[str, ValidationError]:
    try:
        facts = model_files.read_model(model.engine, model.path, risks)
    except UnreadableModel as error:
        found = ValidationError(_(error.sentence), code=error.code, params=error.values)
        return {"allowed_risks" if error.risk else "path": found}
    return find_unsuitable_settings(
        facts,
        model.engine,
        task=model.task,
        context=model.context,
        slots=model.slots,
        parsed=parsed,
        tensor_parallel=model.tensor_parallel,
    )


def find_unsuitable_settings(
    facts: ModelMetadata,
    engine: str,
    *,
    task: str,
    context: int | None,
    slots: int | None = None,
    parsed: Arguments,
    tensor_parallel: int = 1,
) -> dict[str, ValidationError]:
    """Return an error for each setting that does not suit these files, by field; empty: all do."""
    runner = engine_named(engine).as_run_by(parsed.launcher)
    spec = Spec(engine=engine, name="", path="", task=task, tensor_parallel=tensor_parallel)
    found = _errors(runner.check_model(spec, facts, parsed))
    # The other way round is fine: a model that chats can embed and rank, too.
    if task == "chat" and facts.task in ("embedding", "rerank", "transcription"):
        found["task"] = ValidationError(
            _("%(architecture)s is made for another task than chat: %(task)s."),
            code="other-task",
            params={"architecture": facts.architecture, "task": facts.task},
        )
    for field, tokens in (("context", context or 0), ("args", runner.context_of(parsed, slots))):
        if fault := _length_fault(facts, tokens, stretched=parsed.has(*STRETCHING)):
            found[field] = fault
    return found


def _length_fault(facts: ModelMetadata, tokens: int, *, stretched: bool) -> ValidationError | None:
    if tokens > bounds.CONTEXT:
        sentence = _("No model reads more than %(most)d tokens.")
        return ValidationError(sentence, code="longer-than-any-model", params={"most": bounds.CONTEXT})
    if stretched or not facts.context or tokens <= facts.context:
        return None
    # Engines refuse it or, worse, answer nonsense beyond that length. vLLM's VLLM_ALLOW_LONG_MAX_MODEL_LEN is for the
    # whole host and not visible here; an operator who really wants it says so by an argument.
    return ValidationError(
        _(
            "This model reads at most %(most)d tokens. To extend it, say how, for example with "
            "--rope-scaling (llama.cpp) or --hf-overrides (vLLM) in its arguments."
        ),
        code="longer-than-the-model",
        params={"most": facts.context},
    )


def _version_fault(model: Registration, installed: Collection[str] | None) -> ValidationError | None:
    if not model.engine_version or engine_named(model.engine).external:
        return None
    if len(engine_named(model.engine).launchers()) > 1 and not model.launcher:
        sentence = _("Versions differ between launchers: choose a launcher as well (--launcher).")
        return ValidationError(sentence, code="version-without-launcher")
    if installed is not None and model.engine_version not in installed:
        sentence = _("This version is not installed here (there are: %(others)s).")
        others = ", ".join(installed) or _("no version")
        return ValidationError(sentence, code="version-not-installed", params={"others": others})
    return None


def _gpus_fault(gpus: object, tensor_parallel: int) -> ValidationError | None:
    if not isinstance(gpus, list) or not all(type(gpu) is int and 0 <= gpu < 1024 for gpu in gpus):
        return ValidationError(_("GPUs are a list of numbers, for example [0, 1]."), code="no-list-of-gpus")
    if len(set(gpus)) != len(gpus):
        return ValidationError(_("A GPU is named twice."), code="gpu-named-twice")
    if gpus and len(gpus) < tensor_parallel:
        sentence = _("To split it over %(count)d GPUs, name at least as many or none.")
        return ValidationError(sentence, code="too-few-gpus", params={"count": tensor_parallel})
    return None


def _count_devices(model: Registration, parsed: Arguments) -> int:
    """Return over how many GPUs one replica is split, on all of its hosts."""
    return (parsed.number("--tensor-parallel-size") or model.tensor_parallel) * (parsed.number(STAGES) or 1)


def _nodes_fault(model: Registration, parsed: Arguments) -> ValidationError | None:
    if model.nodes == 1:
        return None
    if not engine_named(model.engine).spans_hosts:
        sentence = _("Only vLLM can split one replica over several hosts.")
        return ValidationError(sentence, code="hosts-of-another-engine")
    if (gpus := _count_devices(model, parsed)) % model.nodes:
        sentence = _(
            "Its GPUs (%(gpus)d) cannot be divided evenly among %(hosts)d hosts: set over how many GPUs of all hosts "
            "together it is split (tensor parallel, times --pipeline-parallel-size if that is given)."
        )
        return ValidationError(sentence, code="uneven-hosts", params={"gpus": gpus, "hosts": model.nodes})
    return None


def _unseen_path_problems(path: str) -> dict[str, ValidationError]:
    """Check a path on another machine."""
    if path and Path(path).is_absolute():
        return {}
    code = "relative-path" if path else "no-path"
    return {"path": ValidationError(_(unreadable.SENTENCES[code]), code=code, params={"path": path})}


def _only_texts(args: object) -> list[str]:
    return [arg for arg in args if isinstance(arg, str)] if isinstance(args, Sequence) else []


# --- Arguments

NOT_CHECKED = gettext_noop(
    "The arguments were not checked: this machine cannot ask the engine’s own parser. The host that starts it does."
)


def read_arguments(engine: str, launcher: str, args: Sequence[str], options: Options | None = None) -> Arguments:
    """Read arguments as the engine does; an external one gets none from us."""
    runner = engine_named(engine).as_run_by(launcher)
    return arguments.read_arguments(runner.launcher, () if runner.external else args, options)


def _list_fault(args: object) -> ValidationError | None:
    if not isinstance(args, Sequence) or isinstance(args, str) or not all(isinstance(arg, str) for arg in args):
        sentence = _('More arguments are a list of texts, for example ["--dtype=half"].')
        return ValidationError(sentence, code="no-list-of-texts")
    return None


def find_argument_fault(
    engine: str,
    parsed: Arguments,
    risks: Collection[str],
    tensor_parallel: int = 1,
    slots: int | None = None,
    nodes: int = 1,
) -> ValidationError | None:
    """Return why an engine cannot be started with these arguments; None: it can, as far as is known."""
    for one in parsed.given:
        if not RESERVED.isdisjoint(one.names) or (one.option is None and _may_be_reserved(one.name)):
            sentence = _("%(arg)s is set for each replica and cannot be given here.")
            return ValidationError(sentence, code="reserved", params={"arg": one.written})
        if not ENDING.isdisjoint(one.names):
            sentence = _("With %(arg)s the engine prints something and exits instead of serving.")
            return ValidationError(sentence, code="exits", params={"arg": one.written})
        if not MOVING.isdisjoint(one.names):
            sentence = _("%(arg)s cannot be given: the gateway speaks to engines in plain HTTP, and at /v1.")
            return ValidationError(sentence, code="moves-the-engine", params={"arg": one.written})
    if parsed.faults:
        return ValidationError(explain_fault(parsed.faults[0]), code=parsed.faults[0].code)
    together = _errors(engine_named(engine).check_arguments(parsed, slots))
    spread = _spread_fault(parsed, tensor_parallel, nodes)
    return _risk_fault(parsed, risks) or spread or together.get("args")


def _may_be_reserved(option: str) -> bool:
    # Python's argparse, which vLLM uses, also accepts the beginning of a name.
    return option in RESERVED or (len(option) > len("--") and any(name.startswith(option) for name in RESERVED))


def _risk_fault(parsed: Arguments, risks: Collection[str]) -> ValidationError | None:
    """Return which argument needs a risk that is not allowed; None: none."""
    needed = [("--trust-remote-code", "remote-code")] if parsed.flag("--trust-remote-code") else []
    rules = launched_by(parsed.launcher).rules
    needed += [(one.name, rules.risk_of(one.names, one.values)) for one in parsed.given if one.on]
    for arg, risk in needed:
        if risk and risk not in risks:
            sentence = _('%(arg)s needs the allowed risk "%(risk)s".')
            return ValidationError(sentence, code="risk-not-allowed", params={"arg": arg, "risk": risk})
    for one in parsed.all("--load-format"):
        # Each of them, so that it does not matter which one counts.
        if one.values and one.values[-1].lower() in PICKLING and "pickle" not in risks:
            sentence = _('%(arg)s may read pickles, which needs the allowed risk "pickle".')
            about = {"arg": f"--load-format {one.values[-1]}", "risk": "pickle"}
            return ValidationError(sentence, code="risk-not-allowed", params=about)
    return None


def _spread_fault(parsed: Arguments, tensor_parallel: int, nodes: int) -> ValidationError | None:
    if (parsed.number("--nnodes") or 1) > 1:
        sentence = _(
            "%(arg)s is given by Madoguchi: say with “hosts per replica” (--nodes) over how many hosts one replica is "
            "split."
        )
        return ValidationError(sentence, code="nodes-in-arguments", params={"arg": "--nnodes"})
    for name in SPREADING if nodes > 1 else (*SPREADING, STAGES):
        if (parsed.number(name) or 1) > 1:
            sentence = _(
                "%(arg)s spreads one replica in a way that the plan cannot count: set how many GPUs it is split "
                "over (tensor parallel), or use more replicas."
            )
            return ValidationError(sentence, code="spread", params={"arg": name})
    if nodes > 1 and (fault := _backend_fault(parsed)):
        return fault
    cards = parsed.number("--tensor-parallel-size")
    if cards and tensor_parallel > 1 and cards != tensor_parallel:
        sentence = _("%(arg)s gives another number of GPUs than “split over GPUs” (%(count)d): set it only there.")
        about = {"arg": f"--tensor-parallel-size {cards}", "count": tensor_parallel}
        return ValidationError(sentence, code="split-twice", params=about)
    return None


def _backend_fault(parsed: Arguments) -> ValidationError | None:
    """Return which argument does not go together with ranks on several hosts, as vLLM refuses it there."""
    backend = parsed.text("--distributed-executor-backend") or "mp"
    # Which of two `--nnodes` counts is up to the engine, so that there is to be ours alone.
    name = next((one for one in ("--api-server-count", "--nnodes") if parsed.number(one) is not None), "")
    if backend != "mp":
        name = f"--distributed-executor-backend {backend}"
    if not name:
        return None
    sentence = _("%(arg)s cannot be given for a model over several hosts, whose ranks are started on each of them.")
    return ValidationError(sentence, code="over-hosts", params={"arg": name})


def find_missing_file(parsed: Arguments) -> ValidationError | None:
    """Return why an engine on this machine cannot use a file that arguments name; None: it can. Reads the disk."""
    rules = launched_by(parsed.launcher).rules
    for one in parsed.given:
        for named in rules.files_named(one.names, one.values):
            if fault := _file_fault(named):
                about = {"option": one.name, "path": named.path, "why": explain_unreadable(fault)}
                return ValidationError("%(option)s: %(why)s", code=fault.code, params=about)
    return None


def _file_fault(named: NamedFile) -> UnreadableModel | None:
    path = Path(named.path)
    if not path.is_absolute() or "\0" in named.path:
        return UnreadableModel("relative-path", path=named.path)
    try:
        if named.kind in ("folder", "path") and path.is_dir():
            os.listdir(path)
            return None
        if named.kind == "folder" and path.exists():
            return UnreadableModel("no-directory", path=path)
        with open_regular_file(path) as file:
            head = file.read(LONGEST_TEMPLATE) if named.kind == "template" else b""
    except FileNotFoundError:
        return UnreadableModel("missing", path=path)
    except OSError as error:
        return UnreadableModel("unreadable", path=path, reason=error.strerror)
    if named.kind == "template" and b"{{" not in head and b"{%" not in head:
        return UnreadableModel("no-template", path=path)
    return None


def explain_fault(fault: ArgumentFault) -> str:
    """Return what the engine would refuse, as a sentence in the reader's language."""
    return _FAULTS[fault.code]() % {"arg": fault.arg, "more": ", ".join(fault.more)}


_FAULTS: Mapping[str, Callable[[], str]] = {
    "unknown": lambda: _("This engine does not know %(arg)s: check the spelling, and the engine’s version."),
    "elsewhere": lambda: _("xllamacpp does not accept %(arg)s; llama-server does: choose that launcher."),
    "ambiguous": lambda: _("%(arg)s could be one of several options (%(more)s): write it out."),
    "joined": lambda: _(
        "%(arg)s is one argument, and should be two: %(more)s and its value, each in a line of its own."
    ),
    "no-value": lambda: _("%(arg)s needs a value."),
    "needless-value": lambda: _("%(arg)s takes no value."),
    "stray": lambda: _("%(arg)s belongs to no option; an option begins with a dash."),
    "not-a-number": lambda: _("%(arg)s: the engine cannot read this value as a number."),
    "out-of-range": lambda: _("%(arg)s: the engine accepts these values: %(more)s."),
    "half-read": lambda: _("%(arg)s: llama.cpp would read this as %(more)s; write the number out."),
    "not-json": lambda: _("%(arg)s: the value is not valid JSON."),
    "not-one-of": lambda: _("%(arg)s: the engine knows these values: %(more)s."),
}
