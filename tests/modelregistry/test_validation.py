"""What is found before an engine would find it out: about files, tasks, contexts, risks, arguments."""

import pytest
from django.core.exceptions import ValidationError
from django.utils import translation

from modelregistry import validation
from modelregistry.engines.arguments import ArgumentFault
from modelregistry.files import model_files
from modelregistry.files.metadata import ModelMetadata
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.models import Alias, Host, ServedModel
from tests.modelregistry import paper_models
from tests.translations import japanese  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def _in_english():
    with translation.override("en"):
        yield


CHAT = ModelMetadata(architecture="LlamaForCausalLM", task="chat", context=8192, has_chat_template=True, heads=8)
VECTORS = ModelMetadata(architecture="bert", task="embedding", context=512, pooling="mean")


KNOWLEDGE = ("look_at_path", "look_at_args", "installed", "started_by", "options")  # of the machine


def find_unsuitable(facts=CHAT, engine="vllm", *, task="chat", context=None, args=(), **more):
    parsed = validation.read_arguments(engine, "", args)
    return validation.find_unsuitable_settings(facts, engine, task=task, context=context, parsed=parsed, **more)


def codes(problems):
    """Return what is wrong by field, without the sentences."""
    return {field: error.code for field, error in problems.items()}


def find_problems(**given):
    values = {"engine": "vllm", "launcher": "", "task": "chat", "path": "/m", "url": "", "args": [], "context": None}
    values |= {"gpus": [], "tensor_parallel": 1, "allowed_risks": []}
    known = {name: given.pop(name) for name in KNOWLEDGE if name in given}
    return validation.find_problems(validation.Registration(**values | given), **{"look_at_path": False} | known)


# --- What files cannot give


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
def test_more_context_than_the_model_has_is_refused(engine):
    assert find_unsuitable(engine=engine, context=8192) == {}
    problem = find_unsuitable(engine=engine, context=8193)["context"]
    assert (problem.code, problem.params) == ("longer-than-the-model", {"most": 8192})


@pytest.mark.parametrize("args", [["--rope-scaling", "yarn"], ["--hf-overrides={}"], ["--hf_overrides", "{}"]])
def test_who_says_how_to_stretch_the_context_may(args):
    assert find_unsuitable(context=99999, args=args) == {}


def test_a_context_that_files_do_not_state_is_not_judged():
    assert find_unsuitable(ModelMetadata(architecture="x", has_chat_template=True), context=99999) == {}


@pytest.mark.parametrize("task", ["embedding", "rerank", "transcription"])
def test_a_model_of_another_task_does_not_chat(task):
    facts = ModelMetadata(architecture="Special", task=task, has_chat_template=True)
    problem = find_unsuitable(facts)["task"]
    assert (problem.code, problem.params) == ("other-task", {"architecture": "Special", "task": task})


def test_a_chat_model_may_embed_and_rank():
    assert find_unsuitable(task="embedding") == {}
    assert find_unsuitable(task="rerank") == {}


def test_without_a_chat_template_vllm_cannot_chat_and_llama_cpp_can():
    bare = ModelMetadata(architecture="LlamaForCausalLM", task="chat")
    assert codes(find_unsuitable(bare)) == {"task": "no-chat-template"}
    assert find_unsuitable(bare, args=["--chat-template=/t.jinja"]) == {}
    assert find_unsuitable(bare, "llama.cpp") == {}
    assert find_unsuitable(bare, task="embedding") == {}


def test_llama_cpp_must_know_how_to_pool():
    facts = ModelMetadata(architecture="llama", task="chat")
    assert codes(find_unsuitable(facts, "llama.cpp", task="embedding")) == {"task": "no-pooling"}
    assert find_unsuitable(facts, "llama.cpp", task="embedding", args=["--pooling", "last"]) == {}
    assert find_unsuitable(VECTORS, "llama.cpp", task="embedding") == {}


def test_vllm_splits_heads_evenly():
    assert find_unsuitable(tensor_parallel=4) == {}
    problem = find_unsuitable(tensor_parallel=3)["tensor_parallel"]
    assert (problem.code, problem.params) == ("uneven-heads", {"heads": 8, "gpus": 3})


@pytest.mark.parametrize(
    ("engine", "args"),
    [
        ("vllm", ["--max-model-len=8193"]),
        ("vllm", ["--max-model-len", "16k"]),
        ("llama.cpp", ["-c", "65536"]),
        ("llama.cpp", ["--ctx-size", "8193", "--parallel", "1"]),
    ],
)
def test_a_context_in_arguments_is_held_to_the_model_s_as_well(engine, args):
    problem = find_unsuitable(engine=engine, args=args)["args"]
    assert (problem.code, problem.params) == ("longer-than-the-model", {"most": 8192})
    assert find_unsuitable(engine=engine, args=[*args, "--hf-overrides={}", "--rope-scaling", "yarn"]) == {}


def test_the_context_of_llama_cpp_is_shared_out_to_its_requests():
    assert find_unsuitable(engine="llama.cpp", args=["-c", "32768"]) == {}  # four at a time
    assert find_unsuitable(engine="llama.cpp", args=["-c", "65536"], slots=8) == {}
    assert find_unsuitable(engine="llama.cpp", args=["-c", "65536"], slots=2).keys() == {"args"}


def test_auto_is_no_context():
    assert find_unsuitable(args=["--max-model-len=-1"]) == {}
    assert find_unsuitable(args=["--max-model-len=auto"]) == {}


# --- Numbers in arguments


@pytest.mark.parametrize(
    "arg",
    [
        *("--gpu-memory-utilization=NaN", "--gpu-memory-utilization=2", "--gpu-memory-utilization=0"),
        *("--device-memory-utilization=1.1", "--max-num-seqs=0", "--block-size=0", "--block-size=7"),
        *("--max-num-batched-tokens=0", "--cpu-offload-gb=-5", "--cpu-offload-gb=nan", "--cpu-offload-gb=inf"),
        *("--kv-offloading-size=NaN", "-tp=0", "--max-model-len=0", "--max-model-len=-2", "--watermark=1"),
    ],
)
def test_numbers_with_which_vllm_does_not_work_are_refused(arg):
    assert find_problems(args=[arg]).keys() == {"args"}


@pytest.mark.parametrize(
    "arg",
    [
        *("--gpu-memory-utilization=1", "--gpu-memory-utilization=0.05", "--max-num-seqs=1", "--block-size=16"),
        *("--cpu-offload-gb=0", "--kv-offloading-size=4.5", "--max-model-len=-1", "--watermark=0", "--seed=-3"),
    ],
)
def test_numbers_with_which_vllm_works_are_taken(arg):
    assert find_problems(args=[arg]) == {}


@pytest.mark.parametrize(
    ("args", "fine"),
    [
        (["--parallel", "0"], False),
        (["--parallel", "-1"], True),
        (["--n-cpu-moe", "-1"], False),
        (["--batch-size", "0"], False),
        (["-ub", "0"], True),
        (["--prio", "7"], False),
        (["--sleep-idle-seconds", "0"], False),
        (["--rope-freq-base", "nan"], False),
        (["--cache-ram", "-1"], True),
    ],
)
def test_so_are_those_of_llama_cpp(args, fine):
    assert (find_problems(engine="llama.cpp", args=args) == {}) is fine


def test_a_batch_holds_a_token_of_each_request():
    assert find_problems(args=["--max-num-batched-tokens=10"]).keys() == {"args"}  # 256 requests at a time are planned
    assert find_problems(args=["--max-num-batched-tokens=10"], slots=10) == {}
    assert find_problems(args=["--max-num-batched-tokens=10", "--max-num-seqs=11"], slots=1).keys() == {"args"}


@pytest.mark.parametrize("arg", ["--ssl-keyfile=/k.pem", "--ssl-certfile=/c.pem"])
def test_an_engine_speaks_no_tls(arg):
    assert codes(find_problems(args=[arg])) == {"args": "moves-the-engine"}


@pytest.mark.parametrize("args", [["--ssl-key-file", "/k"], ["--ssl-cert-file", "/c"], ["--api-prefix", "/x"]])
def test_nor_does_llama_cpp_which_answers_at_its_root(args):
    assert codes(find_problems(engine="llama.cpp", args=args)) == {"args": "moves-the-engine"}


# --- Files in arguments


def of_files(tmp_path, *args, engine="llama.cpp"):
    """Return what is wrong with which file that the arguments of a model on this host name; None: nothing."""
    path = paper_models.gguf(tmp_path / "m.gguf") if engine == "llama.cpp" else paper_models.small_llama(tmp_path / "m")
    problem = find_problems(engine=engine, path=str(path), args=list(args), look_at_path=True).get("args")
    return problem and (problem.code, problem.params["path"])


@pytest.mark.parametrize("option", ["--mmproj", "--lora", "--model-draft", "-md", "--chat-template-file"])
def test_a_file_that_an_argument_names_is_there(tmp_path, option):
    there = tmp_path / "there.gguf"
    assert of_files(tmp_path, option, str(there)) == ("missing", str(there))
    assert of_files(tmp_path, option, "x.gguf") == ("relative-path", "x.gguf")
    there.mkdir()
    assert of_files(tmp_path, option, str(there)) == ("unreadable", str(there))
    there.rmdir()
    there.write_text("{{ messages }}")
    assert of_files(tmp_path, option, str(there)) is None


def test_each_of_several_adapters_is_there(tmp_path):
    (tmp_path / "a.gguf").touch()
    missing = ("missing", f"{tmp_path}/b.gguf")
    assert of_files(tmp_path, "--lora", f"{tmp_path}/a.gguf,{tmp_path}/b.gguf") == missing
    assert of_files(tmp_path, "--lora-scaled", f"{tmp_path}/a.gguf:0.5,{tmp_path}/b.gguf:1") == missing
    assert of_files(tmp_path, "--lora-scaled", f"{tmp_path}/a.gguf:0.5") is None
    assert of_files(tmp_path, "--lora-modules", f"x={tmp_path}/b", engine="vllm") == ("missing", f"{tmp_path}/b")


def test_a_chat_template_is_one(tmp_path):
    for path, code in (("/etc/passwd", "no-template"), ("/nowhere.jinja", "missing")):
        assert of_files(tmp_path, f"--chat-template={path}", engine="vllm") == (code, path)
    assert of_files(tmp_path, "--chat-template={{ messages[0] }}", engine="vllm") is None


def test_files_of_another_host_are_not_looked_for_here():
    assert find_problems(engine="llama.cpp", args=["--mmproj", "/elsewhere/x.gguf"]) == {}


# --- Risks in arguments


@pytest.mark.parametrize(
    ("args", "risk"),
    [
        (["--trust-remote-code"], "remote-code"),
        (["--trust_remote_code"], "remote-code"),
        (["--trust-remote"], "remote-code"),  # vLLM takes the beginning of a name
        (["--load-format", "pt"], "pickle"),
        (["--load-format=AUTO"], "pickle"),
        (["--load_format=npcache"], "pickle"),
        (["--middleware=x.Y"], "remote-code"),
        (["--logits-processors", "x:Y"], "remote-code"),
        (["--worker-cls=x.Y"], "remote-code"),
        (["--distributed-executor-backend=x.Y"], "remote-code"),
        (["--compilation-config.backend=x.Y"], "remote-code"),
        (['--kv-transfer-config={"kv_connector_module_path": "x"}'], "remote-code"),
        (['--logging-config={"version": 1}'], "remote-code"),
        (["--allowed-local-media-path=/"], "outside-access"),
        (['--kv-transfer-config={"kv_connector": "x"}'], "outside-access"),
    ],
)
def test_an_argument_does_not_do_what_was_not_allowed(args, risk):
    problem = find_problems(args=args)["args"]
    assert (problem.code, problem.params["risk"]) == ("risk-not-allowed", risk)
    assert find_problems(args=args, allowed_risks=[risk]) == {}


@pytest.mark.parametrize(
    ("args", "risk"),
    [
        (["--tools", "all"], "remote-code"),
        (["--agent"], "remote-code"),
        (["--mcp-servers-json", "{}"], "remote-code"),
        (["--media-path", "/"], "outside-access"),
        (["--rpc", "10.0.0.1:50052"], "outside-access"),
    ],
)
def test_nor_does_one_of_llama_cpp(args, risk):
    problem = find_problems(engine="llama.cpp", args=args)["args"]
    assert (problem.code, problem.params["risk"]) == ("risk-not-allowed", risk)
    assert find_problems(engine="llama.cpp", args=args, allowed_risks=[risk]) == {}


@pytest.mark.parametrize(
    "args",
    [
        ["--load-format=dummy"],
        ["--load-format", "safetensors"],
        ["--dtype=half"],
        ["--distributed-executor-backend=mp"],
        ["--compilation-config.level=3"],
    ],
)
def test_other_arguments_are_free(args):
    assert find_problems(args=args) == {}


@pytest.mark.parametrize("arg", ["--config=/x.yaml", "--api_key=x", "--served-model", "--interrupt_requests"])
def test_reserved_arguments_are_known_by_any_spelling(arg):
    assert codes(find_problems(args=[arg])) == {"args": "reserved"}


@pytest.mark.parametrize(
    "arg",
    [
        "--ho=0.0.0.0",
        "--po=1",
        "--por",
        "--hos",
        "--u=/x",
        "--uds",
        "--con=/x",
        "--api-k=x",
        "--mode=/x",
        "--ser",
    ],
)
def test_p8_reserved_arguments_are_known_by_each_of_their_beginnings(arg):
    """As Python's argparse takes them."""
    assert codes(find_problems(args=[arg])) == {"args": "reserved"}
    by_llama_cpp = find_problems(engine="llama.cpp", launcher="llama-cpp-python", args=["--int"])
    assert codes(by_llama_cpp) == {"args": "reserved"}


@pytest.mark.parametrize("args", [["--loa=pt"], ["--load-form", "auto"], ["--tr"], ["--trust-rem"]])
def test_p8_so_are_arguments_that_need_an_allowed_risk(args):
    assert "args" in find_problems(args=args)


@pytest.mark.parametrize(
    "args",
    [
        ["-mm", "/p.gguf", "-hf", "org/model"],
        ["-mu=http://elsewhere/x.gguf"],
        ["--models_dir", "/models"],
        ["--version"],
        ["-h"],
        ["-c", "8k"],
        ["--n-cpu-moe"],
        ["--jinja=yes"],
        ["--ctx-size 4096"],
    ],
)
def test_e6_what_llama_cpp_could_not_be_started_with_is_refused(args):
    assert find_problems(engine="llama.cpp", args=args).keys() == {"args"}


@pytest.mark.parametrize(
    "args",
    [["-dp", "2"], ["--pipeline_parallel_size=2"], ["-n=2"], ["--dtype half"], ["half"], ["--max-num", "3"], ["-tp=x"]],
)
def test_e6_what_vllm_could_not_be_started_with_is_refused(args):
    assert find_problems(args=args).keys() == {"args"}


def test_e6_cards_are_counted_wherever_they_are_said():
    assert find_problems(args=["-tp", "2"]) == {}
    assert find_problems(args=["-tp", "2"], gpus=[0, 1]) == {}
    assert find_problems(args=["--tensor_par=2"], gpus=[0]).keys() == {"gpus"}
    assert find_problems(args=["-tp", "2"], tensor_parallel=4).keys() == {"args"}
    assert find_unsuitable(args=["-tp=3"]).keys() == {"tensor_parallel"}


def test_e6_every_fault_of_arguments_has_its_sentence():
    codes = [
        "unknown",
        "ambiguous",
        "joined",
        "no-value",
        "needless-value",
        "stray",
        "not-a-number",
        "half-read",
        "out-of-range",
    ]
    for code in (*codes, "not-json", "not-one-of"):
        fault = ArgumentFault(code=code, arg="--some=1", more=("--other",))
        with translation.override("ja"):
            assert "--some=1" in (japanese := validation.explain_fault(fault))
        assert "--some=1" in (english := validation.explain_fault(fault))
        assert japanese != english


@pytest.mark.parametrize("risks", [["all"], "pickle", None, [["pickle"]]])
def test_allowed_risks_are_a_list_of_known_ones(risks):
    assert codes(find_problems(allowed_risks=risks)) == {"allowed_risks": "unknown-risks"}


# --- GPUs


@pytest.mark.parametrize("gpus", ["0", [0.5], [-1], [True], None, {"0": 1}])
def test_gpus_are_a_list_of_numbers(gpus):
    assert codes(find_problems(gpus=gpus)) == {"gpus": "no-list-of-gpus"}


def test_gpus_are_as_many_as_a_replica_is_split_over():
    assert find_problems(gpus=[0, 1], tensor_parallel=2) == {}
    assert find_problems(tensor_parallel=2) == {}
    assert codes(find_problems(gpus=[0], tensor_parallel=2)) == {"gpus": "too-few-gpus"}
    assert codes(find_problems(gpus=[1, 1])) == {"gpus": "gpu-named-twice"}


# --- Files


def test_a_risk_is_reported_at_the_field_that_allows_it(tmp_path):
    path = str(paper_models.small_llama(tmp_path, model_type="homemade", auto_map={"AutoModel": "x.Y"}))
    assert find_problems(path=path, look_at_path=True).keys() == {"allowed_risks"}
    assert find_problems(path=path, look_at_path=True, allowed_risks=["remote-code"]) == {}


def test_files_that_changed_since_are_found_before_a_start(tmp_path):
    path = paper_models.gguf(tmp_path / "m.gguf")
    assert model_files.find_path_fault("llama.cpp", str(path)) is None
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 64)
    assert model_files.find_path_fault("llama.cpp", str(path)).code == "cut-off"


def test_a_start_keeps_to_what_was_allowed(tmp_path):
    path = str(paper_models.small_llama(tmp_path, model_type="homemade", auto_map={"AutoModel": "x.Y"}))
    assert model_files.find_path_fault("vllm", path).risk == "remote-code"
    assert model_files.find_path_fault("vllm", path, ("remote-code",)) is None


def test_a_sentence_is_in_the_language_of_its_reader():
    error = UnreadableModel("no-weights", path="/m")
    with translation.override("ja"):
        assert "/m" in (japanese := validation.explain_unreadable(error))
    with translation.override("en"):
        assert "/m" in (english := validation.explain_unreadable(error))
    assert english == str(error) != japanese


# --- Rows


@pytest.mark.django_db
def test_a_model_whose_files_broke_later_can_still_be_described_and_retired(tmp_path):
    path = paper_models.gguf(tmp_path / "m.gguf")
    model = ServedModel(name="m", engine="llama.cpp", path=str(path))
    model.full_clean()
    model.save()
    path.unlink()
    model.description_en = "gone"
    model.enabled = False
    model.full_clean()
    model.context = 512
    with pytest.raises(ValidationError) as refused:
        model.full_clean()
    assert {field: [one.code for one in errors] for field, errors in refused.value.error_dict.items()} == {
        "path": ["missing"]
    }


@pytest.mark.django_db
def test_a_model_and_an_alias_do_not_share_a_name():
    host = Host.objects.create(name="elsewhere")
    model = ServedModel.objects.create(name="m", engine="llama.cpp", path="/m", host=host)
    Alias.objects.create(name="default", model=model)
    with pytest.raises(ValidationError) as refused:
        ServedModel(name="default", engine="llama.cpp", path="/m", host=host).full_clean()
    assert [one.code for one in refused.value.error_dict["name"]] == ["name-of-an-alias"]
    with pytest.raises(ValidationError) as refused:
        Alias(name="m", model=model).full_clean()
    assert [one.code for one in refused.value.error_dict["name"]] == ["name-of-a-model"]
    model.full_clean()


# --- Over several hosts


def test_only_vllm_is_split_over_hosts():
    assert codes(find_problems(tensor_parallel=2, nodes=2)) == {}
    assert codes(find_problems(engine="llama.cpp", tensor_parallel=2, nodes=2)) == {"nodes": "hosts-of-another-engine"}


@pytest.mark.parametrize(
    ("gpus", "args", "nodes", "fine"),
    [
        (1, [], 2, False),
        (4, [], 2, True),
        (4, [], 3, False),
        (3, ["--pipeline-parallel-size=2"], 2, True),
        (1, ["--pipeline-parallel-size", "3"], 3, True),
        (2, ["--tensor-parallel-size=6", "--pipeline-parallel-size=1"], 4, False),
    ],
)
def test_its_gpus_are_divided_evenly_among_hosts(gpus, args, nodes, fine):
    problems = codes(find_problems(tensor_parallel=gpus, args=args, nodes=nodes, look_at_args=False))
    assert problems.get("nodes") == (None if fine else "uneven-hosts")


def test_stages_are_for_several_hosts():
    stages = ["--pipeline-parallel-size=2"]
    assert codes(find_problems(args=stages)) == {"args": "spread"}
    assert codes(find_problems(args=stages, nodes=2)) == {}


def test_gpus_that_are_named_are_those_of_each_host():
    assert codes(find_problems(tensor_parallel=4, nodes=2, gpus=[0, 1])) == {}
    assert codes(find_problems(tensor_parallel=4, nodes=2, gpus=[0])) == {"gpus": "too-few-gpus"}


@pytest.mark.parametrize("arg", ["--distributed-executor-backend=ray", "--api-server-count=2", "--nnodes=1"])
def test_what_vllm_refuses_of_a_model_over_hosts_is_refused(arg):
    assert codes(find_problems(args=[arg])) == {}
    assert codes(find_problems(args=[arg], tensor_parallel=2, nodes=2)) == {"args": "over-hosts"}
    assert codes(find_problems(args=["--distributed-executor-backend=mp"], tensor_parallel=2, nodes=2)) == {}


@pytest.mark.parametrize("nodes", [1, 2])
def test_over_how_many_hosts_it_is_split_is_no_argument_of_the_engine(nodes):
    problems = find_problems(args=["--nnodes=2"], tensor_parallel=2, nodes=nodes)
    assert codes(problems) == {"args": "nodes-in-arguments"}
    assert "--nodes" in str(problems["args"].messages)


@pytest.mark.parametrize("arg", ["--node-rank=1", "--master-addr=10.0.0.1", "--master-port=5", "--headless"])
def test_which_rank_runs_where_is_not_for_operators(arg):
    assert codes(find_problems(args=[arg], tensor_parallel=2, nodes=2)) == {"args": "reserved"}


def test_a_model_over_hosts_is_not_bound_to_one_and_does_not_live_on_asleep(db):
    host = Host.objects.create(name="gpu-1")
    model = ServedModel(name="m", engine="vllm", path="/m", tensor_parallel=2, nodes=2, host=host, sleep_mode="level1")
    with pytest.raises(ValidationError) as refused:
        model.full_clean()
    found = {field: errors[0].code for field, errors in refused.value.error_dict.items()}
    assert found == {"host": "host-of-several", "sleep_mode": "sleep-over-hosts"}
