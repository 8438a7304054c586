"""Runs llama.cpp's own HTTP server out of the `xllamacpp` wheel, in llama-server's words.

Executed by the Python of that engine's environment (3.10 or newer), so it imports nothing of ours. The API key comes
in LLAMA_API_KEY. Port 0 is any free one; the line "listening on" has it. On SIGTERM it waits until no request is
running or `--grace` seconds are over, and is gone: the server's destructor would wait for running requests with the
interpreter lock held.

`OPTIONS` is what it takes: llama-server's options as far as the wheel's parameters have them, by the names and with the
meaning of llama.cpp's common/arg.cpp (b11434). The product reads the table too, and
reports what is not among them before a start.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
ON, OFF = ("on", "1", "true", "enabled"), ("off", "0", "false", "disabled")
POLL = 0.1  # seconds between two looks at what is still running, after SIGTERM
# Of llama.cpp's common.h: the tensors of a layer's experts, and of a layer without experts.
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
DENSE = r"\.ffn_(up|down|gate)\."
Apply = Callable[[Any, Any], None]  # the parameters, and the value as it was read


@dataclass(frozen=True)
class LauncherOption:
    """`off`: names that say no. `kind`: flag, int, float, json or text; `choices`: of a text, if not all will do."""

    names: "tuple[str, ...]"
    apply: Apply
    kind: str = "text"
    off: "tuple[str, ...]" = ()
    choices: "tuple[str, ...]" = ()


def main(argv: "list[str]") -> None:
    import xllamacpp

    grace = 10.0
    params = xllamacpp.CommonParams()
    prepare(params)
    try:
        for option, value in read(argv):
            if option.names == GRACE:
                grace = value
            else:
                option.apply(params, value)
        finish(params)
        if not params.model.path or not params.model_alias:
            raise ValueError("--model and --alias are needed")
    except (ValueError, OSError, AttributeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    serve(params, grace)


def serve(params: Any, grace: float) -> None:
    import xllamacpp

    # Until the server runs, SIGTERM ends us at once by its default; the constructor would hold it back.
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    print(f"listening on {server.listening_address}", flush=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(1.0):
        pass
    deadline = time.monotonic() + grace
    while count_running(server) and time.monotonic() < deadline:
        time.sleep(POLL)
    os._exit(0)


def count_running(server: Any) -> int:
    """Return requests that are worked on or wait for a slot."""
    names = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
    lines = (line.split() for line in str(server.handle_metrics()).splitlines())
    return int(sum(float(parts[1]) for parts in lines if len(parts) == 2 and parts[0] in names))


def prepare(params: Any) -> None:
    """Set what differs from llama.cpp's own defaults."""
    key = os.environ.get("LLAMA_API_KEY", "")
    params.api_keys = [key] if key else []
    params.ui = False
    params.n_ctx = 0
    params.n_parallel = 4
    params.kv_unified = False


def finish(params: Any) -> None:
    """Set what follows from several options."""
    if params.cpuparams_batch.n_threads < 1 and params.cpuparams.n_threads > 0:
        params.cpuparams_batch.n_threads = params.cpuparams.n_threads
    if params.speculative.draft.mparams.path and enum_name(params.speculative.types[0]).endswith("_NONE"):
        params.speculative.types = [enum_member("common_speculative_type", "COMMON_SPECULATIVE_TYPE", "draft_simple")]


# --- Reading


def read(argv: "Sequence[str]") -> "Iterator[tuple[LauncherOption, Any]]":
    """Read them as llama.cpp does: `_` for `-` in names, a value is the next word; also `--a=b`. Raises ValueError."""
    words = iter(argv)
    for word in words:
        name, equals, inline = word.partition("=")
        name = "--" + name[2:].replace("_", "-") if name.startswith("--") else name
        option = BY_NAME.get(name)
        if option is None:
            raise ValueError(f"unrecognized arguments: {word}")
        if option.kind == "flag":
            yield option, name not in option.off
            continue
        value = inline if equals else next(words, None)
        if value is None:
            raise ValueError(f"argument {name}: expected one argument")
        yield option, convert(option, name, value)


def convert(option: LauncherOption, name: str, value: str) -> Any:
    convert: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "json": json.loads}
    try:
        found = convert.get(option.kind, str)(value)
    except ValueError:
        raise ValueError(f"argument {name}: invalid {option.kind} value: {value!r}") from None
    if option.choices and value not in option.choices:
        raise ValueError(f"argument {name}: invalid choice: {value!r} (choose from {', '.join(option.choices)})")
    return found


# --- Ways to set a parameter; "a.b" is parameter b of what parameter a is


def assign(path: str) -> Apply:
    *outer, name = path.split(".")

    def apply(params: Any, value: Any) -> None:
        target = params
        for part in outer:
            target = getattr(target, part)
        if not hasattr(target, name):
            raise ValueError(f"this xllamacpp has no parameter {path}")
        setattr(target, name, value)

    return apply


def assign_opposite(path: str) -> Apply:
    apply = assign(path)
    return lambda params, value: apply(params, not value)


def assign_switch(path: str) -> Apply:
    apply = assign(path)
    return lambda params, value: apply(params, value in ON)


def assign_member(path: str, enumeration: str, prefix: str, words: "dict[str, str] | None" = None) -> Apply:
    """Return the member of an enumeration of xllamacpp's that has this name.

    `words`: of those with other names.
    """
    apply = assign(path)
    named = words or {}
    return lambda params, value: apply(params, enum_member(enumeration, prefix, str(named.get(value, value))))


def enum_member(enumeration: str, prefix: str, word: str) -> Any:
    import xllamacpp

    members = getattr(xllamacpp, enumeration)
    name = f"{prefix}_{word.upper().replace('-', '_').replace('+', '_')}"
    if not hasattr(members, name):
        raise ValueError(f"this xllamacpp has no {name}")
    return getattr(members, name)


def enum_name(value: Any) -> str:
    return str(getattr(value, "name", value))


def sampling(name: str, flag: str = "") -> Apply:
    """Return a default of requests. llama.cpp notes which ones an operator set: they come before the model's own."""
    assign_value = assign(f"sampling.{name}")

    def apply(params: Any, value: Any) -> None:
        assign_value(params, value)
        if flag:
            bit = enum_member("common_params_sampling_config", "COMMON_PARAMS_SAMPLING_CONFIG", flag)
            params.sampling.user_sampling_config |= int(getattr(bit, "value", bit))

    return apply


def from_file(path: str) -> Apply:
    apply = assign(path)

    def read_file(params: Any, value: str) -> None:
        with open(value, encoding="utf-8") as file:
            apply(params, file.read())

    return read_file


def proportions(params: Any, value: str) -> None:
    parts = [float(part) for part in value.replace("/", ",").split(",")]
    most = len(params.tensor_split)
    if len(parts) > most:
        raise ValueError(f"argument --tensor-split: {len(parts)} parts of at most {most}")
    params.tensor_split = parts + [0.0] * (most - len(parts))


def adapters(params: Any, value: str) -> None:
    lora(params, [(path, 1.0) for path in value.split(",")])


def scaled_adapters(params: Any, value: str) -> None:
    pairs = [part.rpartition(":") for part in value.split(",")]
    if not all(path for path, _, _ in pairs):
        raise ValueError("argument --lora-scaled: FILE:SCALE is expected")
    lora(params, [(path, float(scale)) for path, _, scale in pairs])


def lora(params: Any, pairs: "list[tuple[str, float]]") -> None:
    import xllamacpp

    # It keeps no copies of its own while they are in a list.
    before = [(one.path, one.scale) for one in params.lora_adapters]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in before + pairs]


def override(params: Any, value: str) -> None:
    before = params.tensor_buft_overrides
    params.tensor_buft_overrides = f"{before},{value}" if before else value


def on_cpu(pattern: str) -> Apply:
    """Return what keeps weights of the first so many layers in RAM."""
    return lambda params, count: override(params, ",".join(rf"blk\.{layer}{pattern}=CPU" for layer in range(count)))


def template_arguments(params: Any, value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError("argument --chat-template-kwargs: a JSON object is expected")
    params.default_template_kwargs = params.default_template_kwargs | {
        name: json.dumps(each) for name, each in value.items()
    }


def template_argument(name: str) -> Apply:
    return lambda params, value: template_arguments(params, {name: value})


def reasoning(params: Any, value: str) -> None:
    params.enable_reasoning = 1 if value in ON else 0 if value in OFF else -1
    if value != "auto":
        template_arguments(params, {"enable_thinking": value in ON})


def draft_types(params: Any, value: str) -> None:
    params.speculative.types = [
        enum_member("common_speculative_type", "COMMON_SPECULATIVE_TYPE", word) for word in value.split(",")
    ]


def ranking(params: Any, value: bool) -> None:
    params.embedding = True
    params.pooling_type = enum_member("llama_pooling_type", "LLAMA_POOLING_TYPE", "rank")


def apply_both(first: Apply, second: Apply) -> Apply:
    def apply(params: Any, value: Any) -> None:
        first(params, value)
        second(params, value)

    return apply


def load_mode(mode: str, otherwise: str = "") -> Apply:
    """Read a flag as one mode for yes, another one for no."""

    def apply(params: Any, value: bool) -> None:
        word = mode if value else otherwise
        if word:
            params.load_mode = enum_member("llama_load_mode", "LLAMA_LOAD_MODE", word)

    return apply


# --- What it takes


def text(names: str, apply: Apply, *choices: str) -> LauncherOption:
    return LauncherOption(tuple(names.split()), apply, choices=choices)


def number(names: str, path: "str | Apply") -> LauncherOption:
    return LauncherOption(tuple(names.split()), assign(path) if isinstance(path, str) else path, kind="int")


def decimal(names: str, path: "str | Apply") -> LauncherOption:
    return LauncherOption(tuple(names.split()), assign(path) if isinstance(path, str) else path, kind="float")


def flag(names: str, path: "str | Apply", off: str = "") -> LauncherOption:
    apply = assign(path) if isinstance(path, str) else path
    return LauncherOption(tuple(names.split()), apply, kind="flag", off=tuple(off.split()))


GRACE = ("--grace",)  # seconds for running requests after SIGTERM; ours
FLASH = {"on": "enabled", "off": "disabled", "1": "enabled", "0": "disabled"}

OPTIONS: "tuple[LauncherOption, ...]" = (
    decimal("--grace", "port"),
    text("--model -m", assign("model.path")),
    text("--alias -a", lambda params, value: setattr(params, "model_alias", {value})),
    text("--host", lambda params, value: setattr(params, "hostnames", [value])),
    number("--port", "port"),
    # Work
    number("--threads -t", "cpuparams.n_threads"),
    number("--threads-batch -tb", "cpuparams_batch.n_threads"),
    number("--threads-http", "n_threads_http"),
    number("--ctx-size -c", "n_ctx"),
    number("--predict -n --n-predict", "n_predict"),
    number("--keep", "n_keep"),
    number("--batch-size -b", "n_batch"),
    number("--ubatch-size -ub", "n_ubatch"),
    number("--parallel -np", "n_parallel"),
    flag("--cont-batching -cb", "cont_batching", "--no-cont-batching -nocb"),
    flag("--warmup", "warmup", "--no-warmup"),
    flag("--perf", assign_opposite("no_perf"), "--no-perf"),
    flag("--check-tensors", "check_tensors"),
    text(
        "--flash-attn -fa",
        assign_member("flash_attn_type", "llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE", FLASH),
        *FLASH,
        "auto",
    ),
    text(
        "--numa", assign_member("numa", "ggml_numa_strategy", "GGML_NUMA_STRATEGY"), "distribute", "isolate", "numactl"
    ),
    # What is remembered
    flag("--kv-unified -kvu", "kv_unified", "--no-kv-unified -no-kvu"),
    number("--kv-unified-per-slot", "kv_unified_per_slot"),
    text("--cache-type-k -ctk", assign_member("cache_type_k", "ggml_type", "GGML_TYPE"), *CACHE_TYPES),
    text("--cache-type-v -ctv", assign_member("cache_type_v", "ggml_type", "GGML_TYPE"), *CACHE_TYPES),
    number("--cache-ram -cram", "cache_ram_mib"),
    flag("--cache-prompt", "cache_prompt", "--no-cache-prompt"),
    number("--cache-reuse", "n_cache_reuse"),
    flag("--cache-idle-slots", "cache_idle_slots", "--no-cache-idle-slots"),
    number("--ctx-checkpoints -ctxcp --swa-checkpoints", "n_ctx_checkpoints"),
    number("--checkpoint-min-step -cms", "checkpoint_min_step"),
    flag("--swa-full", "swa_full"),
    flag("--context-shift", "ctx_shift", "--no-context-shift"),
    decimal("--slot-prompt-similarity -sps", "slot_prompt_similarity"),
    text("--slot-save-path", assign("slot_save_path")),
    # Where it is kept
    text("--gpu-layers -ngl --n-gpu-layers", lambda params, value: setattr(params, "n_gpu_layers", read_layers(value))),
    flag("--kv-offload -kvo", assign_opposite("no_kv_offload"), "--no-kv-offload -nkvo"),
    flag("--op-offload", assign_opposite("no_op_offload"), "--no-op-offload"),
    flag("--repack", assign_opposite("no_extra_bufts"), "--no-repack -nr"),
    flag("--no-host", "no_host"),
    text(
        "--split-mode -sm",
        assign_member("split_mode", "llama_split_mode", "LLAMA_SPLIT_MODE"),
        "none",
        "layer",
        "row",
        "tensor",
    ),
    text("--tensor-split -ts", proportions),
    number("--main-gpu -mg", "main_gpu"),
    text("--override-tensor -ot", override),
    flag("--cpu-moe -cmoe", lambda params, value: override(params, f"{EXPERTS}=CPU")),
    number("--n-cpu-moe -ncmoe", on_cpu(EXPERTS)),
    number("--n-cpu-ffn -ncffn", on_cpu(DENSE)),
    text(
        "--load-mode -lm",
        assign_member("load_mode", "llama_load_mode", "LLAMA_LOAD_MODE", {"dio": "direct_io"}),
        *("auto", "none"),
        *("mmap", "mlock", "mmap+mlock", "dio"),
    ),
    text("--lazy-mode -lzm", assign_member("lazy_mode", "llama_lazy_mode", "LLAMA_LAZY_MODE"), "on", "auto", "off"),
    flag("--mlock", load_mode("mmap+mlock")),
    flag("--mmap", load_mode("mmap", "none"), "--no-mmap"),
    flag("--direct-io -dio", load_mode("direct_io", "auto"), "--no-direct-io -ndio"),
    text("--fit -fit", assign_switch("fit_params"), "on", "off"),
    # A longer context than the model's own
    text(
        "--rope-scaling",
        assign_member("rope_scaling_type", "llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE"),
        "none",
        "linear",
        "yarn",
    ),
    decimal("--rope-scale", lambda params, value: setattr(params, "rope_freq_scale", 1 / value)),
    decimal("--rope-freq-base", "rope_freq_base"),
    decimal("--rope-freq-scale", "rope_freq_scale"),
    number("--yarn-orig-ctx", "yarn_orig_ctx"),
    decimal("--yarn-ext-factor", "yarn_ext_factor"),
    decimal("--yarn-attn-factor", "yarn_attn_factor"),
    decimal("--yarn-beta-slow", "yarn_beta_slow"),
    decimal("--yarn-beta-fast", "yarn_beta_fast"),
    # Beside the model
    text("--mmproj -mm", assign("mmproj.path")),
    flag("--mmproj-auto", assign_opposite("no_mmproj"), "--no-mmproj --no-mmproj-auto"),
    flag("--mmproj-offload", "mmproj_use_gpu", "--no-mmproj-offload"),
    number("--image-min-tokens", "image_min_tokens"),
    number("--image-max-tokens", "image_max_tokens"),
    number("--mtmd-batch-max-tokens", "mtmd_batch_max_tokens"),
    decimal("--video-fps", "video_fps"),
    text("--lora", adapters),
    text("--lora-scaled", scaled_adapters),
    flag("--lora-init-without-apply", "lora_init_without_apply"),
    text("--spec-draft-model -md --model-draft", assign("speculative.draft.mparams.path")),
    text("--spec-type", draft_types),
    number("--spec-draft-n-max", "speculative.draft.n_max"),
    number("--spec-draft-n-min", "speculative.draft.n_min"),
    decimal("--spec-draft-p-min --draft-p-min", "speculative.draft.p_min"),
    decimal("--spec-draft-p-split --draft-p-split", "speculative.draft.p_split"),
    text(
        "--spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft",
        lambda params, value: setattr(params.speculative.draft, "n_gpu_layers", read_layers(value)),
    ),
    text(
        "--spec-draft-type-k -ctkd --cache-type-k-draft",
        assign_member("speculative.draft.cache_type_k", "ggml_type", "GGML_TYPE"),
        *CACHE_TYPES,
    ),
    text(
        "--spec-draft-type-v -ctvd --cache-type-v-draft",
        assign_member("speculative.draft.cache_type_v", "ggml_type", "GGML_TYPE"),
        *CACHE_TYPES,
    ),
    # Chat
    flag("--jinja", "use_jinja", "--no-jinja"),
    text("--chat-template", assign("chat_template")),
    text("--chat-template-file", from_file("chat_template")),
    LauncherOption(("--chat-template-kwargs",), template_arguments, kind="json"),
    text(
        "--reasoning-format",
        assign_member("reasoning_format", "common_reasoning_format", "COMMON_REASONING_FORMAT"),
        "none",
        "auto",
        "deepseek",
        "deepseek-legacy",
    ),
    text("--reasoning -rea", reasoning, *ON, *OFF, "auto"),
    text("--reasoning-effort", template_argument("reasoning_effort")),
    number("--reasoning-budget", "sampling.reasoning_budget_tokens"),
    text("--reasoning-budget-message", assign("sampling.reasoning_budget_message")),
    flag("--reasoning-preserve", template_argument("preserve_reasoning"), "--no-reasoning-preserve"),
    flag("--skip-chat-parsing", "force_pure_content_parser", "--no-skip-chat-parsing"),
    flag("--prefill-assistant", "prefill_assistant", "--no-prefill-assistant"),
    flag("--special -sp", "special"),
    # Other tasks
    flag("--embedding --embeddings", "embedding"),
    flag("--rerank --reranking", ranking),
    text(
        "--pooling",
        assign_member("pooling_type", "llama_pooling_type", "LLAMA_POOLING_TYPE"),
        "none",
        "mean",
        "cls",
        "last",
        "rank",
    ),
    number("--embd-normalize", "embd_normalize"),
    # What a request means that does not say
    decimal("--temp --temperature", sampling("temp", "temp")),
    number("--top-k", sampling("top_k", "top_k")),
    decimal("--top-p", sampling("top_p", "top_p")),
    decimal("--min-p", sampling("min_p", "min_p")),
    number("--repeat-last-n", sampling("penalty_last_n", "penalty_last_n")),
    decimal("--repeat-penalty", sampling("penalty_repeat", "penalty_repeat")),
    decimal("--presence-penalty", sampling("penalty_present")),
    decimal("--frequency-penalty", sampling("penalty_freq")),
    number("--seed -s", lambda params, value: setattr(params.sampling, "seed", value % 2**32)),
    flag("--ignore-eos", "sampling.ignore_eos"),
    # The server
    flag("--metrics", "endpoint_metrics"),
    flag("--slots", "endpoint_slots", "--no-slots"),
    flag("--props", "endpoint_props"),
    text("--media-path", assign("media_path")),
    number("--timeout -to", apply_both(assign("timeout_read"), assign("timeout_write"))),
    number("--sse-ping-interval", "sse_ping_interval"),
    number("--verbosity -lv --log-verbosity", "verbosity"),
)
BY_NAME = {name: option for option in OPTIONS for name in (*option.names, *option.off)}


def read_layers(value: str) -> int:
    """Return llama.cpp's own numbers for its words."""
    return {"auto": -1, "all": -2}[value] if value in ("auto", "all") else int(value)


def describe_options() -> "list[dict[str, Any]]":
    """Describe the options as `options/describe.py` does those of other engines, without what is ours."""
    return [
        {
            "names": list(option.names),
            "off": list(option.off),
            "values": "0" if option.kind == "flag" else "1",
            "kind": "text" if option.kind == "flag" else option.kind,
            "choices": list(option.choices),
        }
        for option in OPTIONS
        if option.names != GRACE
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
