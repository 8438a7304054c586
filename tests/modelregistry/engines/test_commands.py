import itertools
import json
import re
from dataclasses import asdict, replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import pytest

from modelregistry.engines import base, llama_cpp, programs, vllm
from modelregistry.engines.base import EngineEndpoint, Spec
from modelregistry.engines.programs import NoLauncher
from modelregistry.engines.registry import all_launchers, engine_named, installable_engines, launched_by

PLACE = EngineEndpoint(address="10.0.0.7", port=18123, api_key="secret", grace=10)
CHAT = Spec(engine="llama.cpp", name="acme/chat", path="/m/chat.gguf", context=4096, slots=3)
ENVIRONMENT = {"PATH": "/bin", "HOME": "/root", "CUDA_VISIBLE_DEVICES": "1", "VLLM_COMMAND": "x"}
ENVIRONMENT |= {"DATABASE_URL": "postgres://u:p@h/d", "SECRET_KEY": "k", "LDAP_BIND_PASSWORD": "p", "HF_HOME": "/hf"}
ENVIRONMENT |= {"LLAMA_ARG_CTX_SIZE": "65536"}  # an argument that the planner does not see
ENVIRONMENT |= {"RAY_AUTH_TOKEN_PATH": "/secrets/token", "RAY_TLS_SERVER_KEY": "/secrets/host.key"}


def command(spec, launcher, place=PLACE):
    return launched_by(launcher).build_command(spec, ("/opt/engine",), place, ENVIRONMENT)


def pairs(argv):
    """Return `--name value` pairs as a mapping."""
    return {name: value for name, value in itertools.pairwise(argv) if name.startswith("--")}


@pytest.mark.parametrize("launcher", all_launchers())
def test_every_engine_listens_at_its_endpoint_under_the_public_name(launcher):
    options = pairs(command(CHAT, launcher).argv)
    assert (options["--host"], options["--port"]) == ("10.0.0.7", "18123")
    name = {"vllm": "--served-model-name", "llama-cpp-python": "--model_alias"}.get(launcher, "--alias")
    assert options[name] == "acme/chat"


@pytest.mark.parametrize(
    ("launcher", "variable"),
    [
        ("vllm", "VLLM_API_KEY"),
        ("llama-server", "LLAMA_API_KEY"),
        ("xllamacpp", "LLAMA_API_KEY"),
        ("llama-cpp-python", "API_KEY"),
    ],
)
def test_the_key_is_in_the_environment_and_not_in_the_command_line(launcher, variable):
    made = command(CHAT, launcher)
    assert made.env[variable] == "secret"
    assert not any("secret" in word for word in made.argv)


@pytest.mark.parametrize("launcher", all_launchers())
def test_an_engine_gets_no_secret_of_ours(launcher):
    env = command(CHAT, launcher).env
    assert {"PATH", "HOME", "CUDA_VISIBLE_DEVICES", "HF_HOME"} <= env.keys()
    assert env["PATH"] == "/opt:/bin"
    assert not [name for name in env if name.startswith("RAY_")]
    assert not {"DATABASE_URL", "SECRET_KEY", "LDAP_BIND_PASSWORD", "VLLM_COMMAND", "LLAMA_ARG_CTX_SIZE"} & env.keys()


def test_the_context_of_llama_cpp_is_the_sum_of_its_slots():
    options = pairs(command(CHAT, "llama-server").argv)
    assert (options["--ctx-size"], options["--parallel"]) == ("12288", "3")


def test_without_a_context_llama_cpp_shares_the_models_own():
    argv = command(replace(CHAT, context=None, slots=None), "llama-server").argv
    assert (pairs(argv)["--ctx-size"], pairs(argv)["--parallel"]) == ("0", "4")
    assert "--kv-unified" in argv


def test_llama_cpp_shows_its_metrics():
    assert "--metrics" in command(CHAT, "llama-server").argv


@pytest.mark.parametrize(("task", "flag"), [("embedding", "--embeddings"), ("rerank", "--reranking")])
def test_a_whole_input_of_an_embedding_fits_one_batch(task, flag):
    argv = command(replace(CHAT, task=task), "llama-server").argv
    options = pairs(argv)
    assert flag in argv
    assert (options["--batch-size"], options["--ubatch-size"]) == ("4096", "4096")


def test_a_chat_model_keeps_the_default_batch():
    assert "--ubatch-size" not in command(CHAT, "llama-server").argv


def test_xllamacpp_is_run_by_its_own_python_with_our_launcher():
    argv = command(CHAT, "xllamacpp").argv
    assert argv[:4] == ("/opt/engine", str(llama_cpp.XLLAMACPP_LAUNCHER), "--grace", "9")
    assert llama_cpp.XLLAMACPP_LAUNCHER.exists()


def test_llama_cpp_python_keeps_no_number_for_each_word_and_token_unless_asked_to():
    assert pairs(command(CHAT, "llama-cpp-python").argv)["--logits_all"] == "false"
    options = pairs(command(replace(CHAT, args=("--logits_all=true",)), "llama-cpp-python").argv)
    assert options["--logits_all"] == "true"


def test_llama_cpp_python_never_interrupts_a_stream():
    options = pairs(command(CHAT, "llama-cpp-python").argv)
    assert options["--interrupt_requests"] == "false"
    assert options["--n_ctx"] == "4096"


def test_vllm_never_asks_the_internet():
    env = command(replace(CHAT, engine="vllm"), "vllm").env
    assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"]) == ("1", "1")


def test_g16_vllm_fetches_from_nowhere_but_where_the_operator_says():
    for task in ("chat", "embedding", "transcription"):
        careful = command(replace(CHAT, engine="vllm", task=task), "vllm")
        # An empty list would mean everywhere.
        assert pairs(careful.argv)["--allowed-media-domains"].endswith(".invalid")
        assert careful.env["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
    isolation = base.CallerIsolation(media_domains=("files.example.com", "cdn.example.com"))
    argv = (
        launched_by("vllm")
        .build_command(replace(CHAT, engine="vllm"), ("/opt/engine",), PLACE, ENVIRONMENT, None, isolation)
        .argv
    )
    place = argv.index("--allowed-media-domains")
    assert argv[place + 1 : place + 3] == ("files.example.com", "cdn.example.com")


@pytest.mark.parametrize("launcher", ["llama-server", "xllamacpp"])
def test_g18_llama_cpp_keeps_nothing_between_requests_unless_tenants_share_it(launcher):
    assert "--no-cache-prompt" in command(CHAT, launcher).argv
    shared = base.CallerIsolation(shared_cache=True)
    argv = launched_by(launcher).build_command(CHAT, ("/opt/engine",), PLACE, ENVIRONMENT, None, shared).argv
    assert "--no-cache-prompt" not in argv
    assert "--no-cache-prompt" not in command(replace(CHAT, task="embedding"), launcher).argv


def test_vllm_counts_context_and_slots_per_request():
    options = pairs(command(replace(CHAT, engine="vllm"), "vllm").argv)
    assert (options["--max-model-len"], options["--max-num-seqs"]) == ("4096", "3")


def test_a_vllm_that_we_installed_is_guarded_on_every_path():
    made = launched_by("vllm").build_command(CHAT, ("/cache/bin/python", *vllm.VLLM_MODULE), PLACE, ENVIRONMENT)
    assert pairs(made.argv)["--middleware"] == "madoguchi_guard.Guard"
    assert (Path(made.env["PYTHONPATH"]) / "madoguchi_guard.py").exists()
    assert "--middleware" not in command(CHAT, "vllm").argv  # another one may run in a container


async def guarded(monkeypatch, path, kind="http", method="POST", pieces=(b"",), **headers):
    """Return what the guard sends, or "passed" and the body that it let through."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.syspath_prepend(vllm.VLLM_GUARD)
    sent = []
    left = list(pieces)

    async def receive():
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def app(scope, receive, send):
        body, more = b"", kind == "http"
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        sent.append(("passed", body))

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    if kind == "http":
        scope["method"] = method
    await import_module("madoguchi_guard").Guard(app)(scope, receive, send)
    return sent


@pytest.mark.parametrize("path", ["/invocations", "/tokenize", "/metrics", "/v1/models", "/scale_elastic_ep"])
async def test_the_guard_wants_the_key(monkeypatch, path):
    for wrong in ({}, {"authorization": "Bearer other"}, {"authorization": "secret"}):
        assert (await guarded(monkeypatch, path, **wrong))[0]["status"] == 401
    assert await guarded(monkeypatch, path, authorization="Bearer secret") == [("passed", b"")]
    assert (await guarded(monkeypatch, path, kind="websocket"))[0]["type"] == "websocket.close"


async def test_the_guard_lets_health_checks_and_the_start_pass(monkeypatch):
    assert await guarded(monkeypatch, "/health") == [("passed", b"")]
    assert await guarded(monkeypatch, "/", kind="lifespan") == [("passed", b"")]


KEY = {"authorization": "Bearer secret"}
RELOAD = b'{"method": "reload_weights"}'


@pytest.fixture
def development(monkeypatch):
    """Have vLLM open the routes of its development."""
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", "/v1/chat/completions"), ("POST", "/v2/rerank"), ("POST", "/rerank"), ("GET", "/metrics")),
        *(("GET", "/version"), ("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping")),
    ],
)
async def test_of_a_vllm_that_can_sleep_the_guard_opens_what_is_needed_with_the_key(
    monkeypatch, development, method, path
):
    assert await guarded(monkeypatch, path, method=method, **KEY) == [("passed", b"")]
    assert (await guarded(monkeypatch, path, method=method))[0]["status"] == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/server_info"), ("POST", "/reset_prefix_cache"), ("POST", "/pause"), ("POST", "/update_weights")),
        *(("POST", "/init_weight_transfer_engine"), ("GET", "/sleep"), ("POST", "/sleep/"), ("POST", "/invocations")),
        *(("POST", "/release_kv_cache_memory"), ("GET", "/collective_rpc"), ("POST", "/v1"), ("POST", "/tokenize")),
    ],
)
async def test_of_a_vllm_that_can_sleep_the_guard_closes_all_else(monkeypatch, development, method, path):
    assert (await guarded(monkeypatch, path, method=method, **KEY))[0]["status"] == 404


async def test_of_the_calls_of_its_workers_only_the_reload_passes_and_in_one_form(monkeypatch, development):
    for pieces in ([RELOAD], [b'{"method":', b'"reload_weights"}'], [b" \n" + RELOAD]):
        assert await guarded(monkeypatch, "/collective_rpc", pieces=pieces, **KEY) == [("passed", RELOAD)]
    for body in (
        *(b'{"method": "sleep"}', b'{"method": "reload_weights", "args": ["/etc"]}', b'["reload_weights"]', b"\xff"),
        *(b"", b"null", b"[" * 200, RELOAD + b" " * 300, b'{"method": "reload_weights", "kwargs": {}}'),
    ):
        assert (await guarded(monkeypatch, "/collective_rpc", pieces=[body], **KEY))[0]["status"] == 404, body
    assert (await guarded(monkeypatch, "/collective_rpc", pieces=[RELOAD]))[0]["status"] == 401


async def test_a_vllm_that_cannot_sleep_is_guarded_as_before(monkeypatch):
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "0")
    assert await guarded(monkeypatch, "/tokenize", **KEY) == [("passed", b"")]


GPU_PROGRAM = ("/cache/engines/vllm-0.32.0/bin/python", *vllm.VLLM_MODULE)
CPU_PROGRAM = ("/cache/engines/vllm-0.32.0+cpu/bin/python", *vllm.VLLM_MODULE)


@pytest.mark.parametrize("level", ["level1", "level2"])
def test_only_a_model_that_sleeps_opens_the_routes_of_development(level):
    sleeper = launched_by("vllm").build_command(replace(CHAT, sleep=level), GPU_PROGRAM, PLACE, ENVIRONMENT)
    assert "--enable-sleep-mode" in sleeper.argv
    assert "--no-log-error-stack" in sleeper.argv  # development mode would log callers' words
    assert sleeper.env["VLLM_SERVER_DEV_MODE"] == "1"
    other = launched_by("vllm").build_command(CHAT, GPU_PROGRAM, PLACE, ENVIRONMENT)
    assert "--enable-sleep-mode" not in other.argv
    assert "VLLM_SERVER_DEV_MODE" not in other.env


def test_a_model_that_is_stopped_when_idle_is_what_it_was_before_there_was_a_choice():
    known = {**asdict(CHAT)}
    del known["sleep"], known["version"], known["nodes"], known["rank"], known["hosts"]
    before = sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    assert CHAT.fingerprint() == before
    assert replace(CHAT, sleep="level1").fingerprint() != before


@pytest.mark.parametrize(
    ("program", "version", "why"),
    [
        (GPU_PROGRAM, "0.32.0", ""),
        (GPU_PROGRAM, "", ""),
        (CPU_PROGRAM, "0.32.0+cpu", "sleep-cpu"),
        (GPU_PROGRAM, "0.10.2", "sleep-version"),
        (("/usr/bin/vllm",), "0.32.0", "sleep-unguarded"),
    ],
)
def test_a_vllm_that_cannot_sleep_says_why(program, version, why):
    assert launched_by("vllm").explain_no_sleep(program, version) == why


def test_engines_without_a_sleep_of_their_own_are_stopped():
    assert launched_by("llama-server").sleep_levels() == ("stop",)
    assert launched_by("llama-server").explain_no_sleep(("/opt/llama-server",), "1")


def test_llama_server_has_no_pages_and_calls_no_other_server():
    assert {"--no-webui", "--offline"} <= set(command(CHAT, "llama-server").argv)


def test_vllm_transcribes_as_it_generates():
    assert "--runner" not in command(replace(CHAT, engine="vllm", task="transcription"), "vllm").argv


@pytest.mark.parametrize("task", ["embedding", "rerank"])
def test_vllm_pools_for_what_is_not_chat(task):
    assert pairs(command(replace(CHAT, engine="vllm", task=task), "vllm").argv)["--runner"] == "pooling"


def test_vllm_reads_pickles_and_runs_a_models_code_only_where_that_is_allowed():
    careful = command(replace(CHAT, engine="vllm"), "vllm").argv
    assert pairs(careful)["--load-format"] == "safetensors"
    assert "--trust-remote-code" not in careful
    bold = command(replace(CHAT, engine="vllm", allowed_risks=("pickle", "remote-code")), "vllm").argv
    assert "--trust-remote-code" in bold
    assert "--load-format" not in bold


def test_vllm_reads_mistrals_own_form_where_it_is(tmp_path):
    (tmp_path / "consolidated.safetensors").touch()
    argv = command(replace(CHAT, engine="vllm", path=str(tmp_path)), "vllm").argv
    assert pairs(argv)["--load-format"] == "mistral"


def test_vllm_without_a_cache_does_not_want_nearly_all_ram_to_be_free():
    spec = replace(CHAT, engine="vllm", task="embedding")
    argv = launched_by("vllm").build_command(spec, ("/opt/engine",), PLACE, ENVIRONMENT, base.MemoryGrant()).argv
    assert pairs(argv)["--kv-cache-memory-bytes"] == str(2**20)


@pytest.mark.parametrize("launcher", all_launchers())
def test_more_arguments_come_last(launcher):
    assert command(replace(CHAT, args=("--new-a", "--new-b")), launcher).argv[-2:] == ("--new-a", "--new-b")


def test_an_ipv6_address_makes_a_proper_url():
    assert replace(PLACE, address="::1").url == "http://[::1]:18123"


@pytest.mark.parametrize(
    ("launcher", "said", "slots"),
    [("vllm", None, None), ("vllm", 7, 7), ("xllamacpp", None, 4), ("llama-server", 2, 2), ("llama-cpp-python", 8, 1)],
)
def test_how_many_requests_it_works_on_at_a_time(launcher, said, slots):
    assert launched_by(launcher).slots(replace(CHAT, slots=said)) == slots


@pytest.mark.parametrize("field", ["name", "path", "launcher", "task", "context", "slots", "args"])
def test_the_fingerprint_follows_every_setting(field):
    other = {"context": 1, "slots": 1, "args": ("x",)}.get(field, "other")
    assert replace(CHAT, **{field: other}).fingerprint() != CHAT.fingerprint()
    assert replace(CHAT).fingerprint() == CHAT.fingerprint()


# --- Which launcher


ALL = {name: (f"/bin/{name}",) for name in all_launchers()}


def test_the_hosts_own_build_comes_first():
    spec = replace(CHAT, launcher="")
    assert programs.choose_launcher(spec, ALL) == "llama-server"
    assert programs.choose_launcher(spec, {"xllamacpp": (), "llama-cpp-python": ()}) == "xllamacpp"
    assert programs.choose_launcher(spec, {"llama-cpp-python": ()}) == "llama-cpp-python"


def test_the_launcher_is_the_chosen_one_or_none():
    assert programs.choose_launcher(replace(CHAT, launcher="xllamacpp"), ALL) == "xllamacpp"
    with pytest.raises(NoLauncher, match="xllamacpp"):
        programs.choose_launcher(replace(CHAT, launcher="xllamacpp"), {"llama-server": ()})


def test_llama_cpp_python_is_not_taken_to_rerank():
    with pytest.raises(NoLauncher):
        programs.choose_launcher(replace(CHAT, task="rerank"), {"llama-cpp-python": ()})


def test_vllm_is_not_served_by_a_llama():
    with pytest.raises(NoLauncher, match="VLLM_COMMAND"):
        programs.choose_launcher(replace(CHAT, engine="vllm"), {"llama-server": ()})


def program(directory, name):
    directory.mkdir(parents=True)
    path = directory / name
    path.touch(0o755)
    return str(path)


def test_a_setting_wins_over_the_cache_and_the_cache_over_the_path(tmp_path):
    on_path = program(tmp_path / "bin", "llama-server")
    found = programs.find_engines({}, tmp_path / "cache", str(tmp_path / "bin"))
    assert found == {"llama-server": (on_path,)}
    cached = program(tmp_path / "cache/engines/llama-server-1.0/bin", "llama-server")
    assert programs.find_engines({}, tmp_path / "cache", str(tmp_path / "bin")) == {"llama-server": (cached,)}
    commands = {"llama-server": "nice -n 5 '/opt/my llama/llama-server'", "vllm": ""}
    found = programs.find_engines(commands, tmp_path / "cache", str(tmp_path / "bin"))
    assert found == {"llama-server": ("nice", "-n", "5", "/opt/my llama/llama-server")}


def test_the_newest_of_several_versions_is_taken(tmp_path):
    for version in ("2026.9.1", "2026.10.1", "2026.10.0"):
        program(tmp_path / f"engines/xllamacpp-{version}/bin", "python")
    newest = str(tmp_path / "engines/xllamacpp-2026.10.1/bin/python")
    assert programs.find_engines({}, tmp_path, "")["xllamacpp"] == (newest,)


def test_vllm_of_the_cache_is_started_by_its_module(tmp_path):
    python = program(tmp_path / "engines/vllm-0.32.0+cpu/bin", "python")
    Path(python).with_name("vllm").touch(0o755)  # holds the path where it was built
    assert programs.find_engines({}, tmp_path, "")["vllm"] == (python, "-m", "vllm.entrypoints.cli.main")


def test_vllms_build_for_gpus_comes_before_the_one_for_cpus(tmp_path):
    for version in ("0.33.0+cpu", "0.32.0", "0.31.0"):
        program(tmp_path / f"engines/vllm-{version}/bin", "python")
    assert "vllm-0.32.0/" in programs.find_engines({}, tmp_path, "")["vllm"][0]


def test_a_missing_engine_can_be_installed_by_the_name_in_the_message():
    for spec in (
        CHAT,
        replace(CHAT, engine="vllm"),
        *(replace(CHAT, launcher=x) for x in engine_named("llama.cpp").launchers()),
    ):
        with pytest.raises(NoLauncher) as told:
            programs.choose_launcher(spec, {})
        assert re.search(r"`manage.py installengine (\S+)`", str(told.value))[1] in installable_engines()


def test_an_environment_whose_python_is_gone_is_not_found(tmp_path):
    directory = tmp_path / "engines/xllamacpp-1.0/bin"
    directory.mkdir(parents=True)
    (directory / "python").symlink_to(tmp_path / "gone")
    assert programs.find_engines({}, tmp_path, "") == {}


# --- What a log shows


def test_the_first_error_of_a_vllm_worker_is_the_cause():
    log = (
        "WARNING: ulimit failed OSError: nothing\n"
        "(EngineCore pid=9) INFO loading\n"
        "(EngineCore pid=9) ERROR 11-22 core.py ValueError: context too long\n"
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above\n"
    )
    assert launched_by("vllm").last_telling_line(log).endswith("ValueError: context too long")


def test_llama_cpps_first_error_is_the_cause():
    log = "0.00 I srv init: loading\n0.01 E gguf_init: failed to read magic\n0.02 E srv: exiting\nerror: no\n"
    assert launched_by("xllamacpp").last_telling_line(log) == "0.01 E gguf_init: failed to read magic"


def test_what_llama_cpp_says_comes_before_the_traceback_of_its_python():
    log = (
        "create_tensor: loading tensor blk.0.attn_q.weight\n"
        "llama_model_load: error loading model: check_tensor_dims: tensor 'blk.0.attn_q.weight' not found\n"
        "Traceback (most recent call last):\nValueError: Failed to load model from file: /m.gguf\n"
    )
    assert launched_by("llama-cpp-python").last_telling_line(log).endswith("tensor 'blk.0.attn_q.weight' not found")


def test_without_any_error_the_last_line_has_to_do():
    assert launched_by("llama-server").last_telling_line("one\ntwo\n\n") == "two"
    assert launched_by("llama-server").last_telling_line("") == ""


def test_llama_server_is_given_values_as_arguments_of_their_own():
    """It calls `--threads=1` an invalid argument; operators write it so for every engine."""
    spec = replace(CHAT, args=("--threads=1", "--pooling", "mean", "-x=1"))
    assert command(spec, "llama-server").argv[-5:] == ("--threads", "1", "--pooling", "mean", "-x=1")
    assert command(spec, "xllamacpp").argv[-5:] == ("--threads", "1", "--pooling", "mean", "-x=1")


@pytest.mark.parametrize(
    ("launcher", "args", "gone", "given"),
    [
        ("vllm", ("--max_num_seqs=64",), "--max-num-seqs", "--max_num_seqs=64"),
        ("vllm", ("--scheduling-pol=fcfs",), "--scheduling-policy", "--scheduling-pol=fcfs"),
        ("llama-server", ("-np", "8"), "--parallel", "-np"),
        ("llama-server", ("--cache_prompt",), "--no-cache-prompt", "--cache-prompt"),
        ("llama-cpp-python", ("--n-ctx=512",), None, "--n_ctx"),
    ],
)
def test_e6_an_engine_hears_of_nothing_twice(launcher, args, gone, given):
    argv = command(replace(CHAT, args=args), launcher).argv
    assert gone not in argv
    assert argv.count(given) == 1


def test_e6_a_fraction_of_the_card_in_any_spelling_wins_over_the_plan():
    grant = base.MemoryGrant(visible=("0", "1"), cache=2**30, fraction=0.5)
    spec = replace(CHAT, engine="vllm", tensor_parallel=1, args=("--gpu_memory_util=0.8", "-tp", "2"))
    argv = launched_by("vllm").build_command(spec, ("/opt/engine",), PLACE, ENVIRONMENT, grant).argv
    assert not {"--gpu-memory-utilization", "--kv-cache-memory-bytes", "--tensor-parallel-size"} & set(argv)
    assert spec.cards("vllm") == 2


def test_e6_slots_are_counted_wherever_they_are_said():
    assert launched_by("llama-server").slots(replace(CHAT, args=("-np", "8"))) == 8
    assert pairs(command(replace(CHAT, args=("-np", "8")), "llama-server").argv)["--ctx-size"] == str(8 * 4096)
    assert launched_by("vllm").slots(replace(CHAT, args=("--max_num_seqs=9",))) == 9
    assert not launched_by("vllm").supports_priority("chat", ["--scheduling_policy", "fcfs"])


# --- over several hosts

LARGE = Spec(engine="vllm", name="large", path="/m/large", tensor_parallel=4, nodes=2, hosts=("gpu-1", "gpu-2"))
MASTER = replace(PLACE, master=("10.0.0.7", 18200))


def test_each_rank_knows_its_number_and_where_rank_0_is():
    first, second = (pairs(command(replace(LARGE, rank=rank), "vllm", MASTER).argv) for rank in (0, 1))
    where = {"--nnodes": "2", "--master-addr": "10.0.0.7", "--master-port": "18200"}
    assert where.items() <= first.items()
    assert where.items() <= second.items()
    assert (first["--node-rank"], second["--node-rank"]) == ("0", "1")


def test_only_rank_0_answers():
    assert "--headless" not in command(LARGE, "vllm", MASTER).argv
    assert "--headless" in command(replace(LARGE, rank=1), "vllm", MASTER).argv


def test_a_rank_is_reached_at_its_host_s_own_address():
    assert command(LARGE, "vllm", MASTER).env["VLLM_HOST_IP"] == "10.0.0.7"
    assert "VLLM_HOST_IP" not in command(replace(LARGE, nodes=1, hosts=()), "vllm").env


def test_a_model_on_one_host_has_no_ranks():
    assert not {"--nnodes", "--node-rank", "--headless"} & set(command(replace(LARGE, nodes=1), "vllm").argv)


def test_a_rank_that_moves_is_started_again():
    marks = {
        replace(LARGE, rank=rank, hosts=hosts).fingerprint() for rank in (0, 1) for hosts in (("a", "b"), ("a", "c"))
    }
    assert len(marks) == 4
    alone = replace(LARGE, nodes=1)
    assert replace(alone, rank=1, hosts=("a",)).fingerprint() == alone.fingerprint()
