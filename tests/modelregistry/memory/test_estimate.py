"""What engines are predicted to take, beside what they said themselves; and what processes hold."""

import json
import mmap
import os
import subprocess
import sys
from dataclasses import asdict, replace
from hashlib import sha256

import pytest

from modelregistry.engines import arguments, base
from modelregistry.engines.base import Spec
from modelregistry.engines.registry import launched_by
from modelregistry.files import model_files
from modelregistry.files.metadata import Attention, ModelMetadata
from modelregistry.memory import allocation, estimate, placement, vllm_cache
from modelregistry.memory import llama_cpp as llama_cpp_memory
from modelregistry.memory import vllm as vllm_memory
from modelregistry.memory.estimate import GIB, MIB, Demand, Measured, apply_measurements, measure_held, predict
from modelregistry.memory.placement import NoRoom
from modelregistry.process import gpus, shim
from modelregistry.process.process import Identity
from tests.modelregistry import paper_models
from tests.modelregistry.nvml import two_a100

SMOLLM2 = ModelMetadata(
    architecture="llama",
    quantisation="Q4_1",
    context=8192,
    weight_bytes=96_576_768,
    layers=30,
    attention=(Attention(3, 64, 64),) * 30,
    hidden=576,
    vocabulary=49_152,
)
# Every second layer sees 1,024 tokens, and five of six 512: as Gemma 2 and 3 in small.
GEMMA2 = replace(SMOLLM2, attention=(Attention(4, 128, 128), Attention(4, 128, 128, window=1024)) * 6)
GEMMA3 = replace(SMOLLM2, attention=((Attention(1, 256, 256, window=512),) * 5 + (Attention(1, 256, 256),)) * 2)
DEEPSEEK = replace(
    SMOLLM2, attention=(Attention(1, 576, 0, kind="latent"),) * 61
)  # latent attention: 512 + 64 numbers, once
LLAMA_8B = replace(SMOLLM2, attention=(Attention(8, 128, 128),) * 32, hidden=4096, vocabulary=128_256)


def llama_cpp(context=None, slots=4, *args, **more):
    return Demand(launcher="llama-server", task="chat", kind="ram", context=context, slots=slots, args=args, **more)


def vllm(context=8192, slots=4, *args, **more):
    return Demand(launcher="vllm", task="chat", context=context, slots=slots, args=args, **more)


def cache(facts, demand):
    return predict(facts, demand).cache / MIB


# --- llama.cpp's cache, as its log shows ("llama_kv_cache: size = …", b11549)


@pytest.mark.parametrize(
    ("facts", "demand", "mib"),
    [
        (SMOLLM2, llama_cpp(2048, 4), 180.0),
        (SMOLLM2, llama_cpp(8192, 1), 180.0),
        (SMOLLM2, llama_cpp(4096, 8), 720.0),
        (SMOLLM2, llama_cpp(None, 4), 180.0),
        (SMOLLM2, llama_cpp(None, 4, "--cache-type-k=q8_0", "--cache-type-v", "q8_0"), 95.62),
        (GEMMA2, llama_cpp(4096, 2), 96.0 + 36.0),
        (GEMMA3, llama_cpp(8192, 2), 32.0 + 20.0),
    ],
)
def test_llama_cpps_cache_is_what_its_log_says(facts, demand, mib):
    assert cache(facts, demand) == pytest.approx(mib, abs=0.01)


def test_a_context_is_rounded_up_to_whole_cells():
    assert cache(SMOLLM2, llama_cpp(1000, 1)) == cache(SMOLLM2, llama_cpp(1024, 1))
    assert cache(SMOLLM2, llama_cpp(1025, 1)) == cache(SMOLLM2, llama_cpp(1280, 1))


def test_windows_can_be_switched_off():
    assert cache(GEMMA2, llama_cpp(4096, 2, "--swa-full")) == 2 * 96.0


def test_the_operators_context_wins():
    assert cache(SMOLLM2, llama_cpp(2048, 4, "--ctx-size", "32768")) == 720.0


def test_an_encoder_has_no_cache():
    assert cache(replace(SMOLLM2, attention=()), llama_cpp(512, 4)) == 0


# --- vLLM's cache


SPARE = 16.0  # MiB: the block of LLAMA_8B's that is never used, of 128 tokens at most


def test_a_token_of_llama_3_8b_takes_128_kib():
    setting = vllm_memory.cache_setting(LLAMA_8B, vllm(), 8192)
    assert vllm_cache.token_bytes(LLAMA_8B, setting) == 128 * 1024


def test_e1_a_cache_for_one_request_lets_vllm_start():
    """It sets one block aside, and refuses to start if the rest does not hold one whole context."""
    assert predict(LLAMA_8B, vllm(8192, 1)).cache_least == GIB + SPARE * MIB
    given = placement.with_cache(predict(LLAMA_8B, vllm(8000, None)), 0)
    assert given.cache == given.cache_least == (63 + 1) * SPARE * MIB
    # Given the size of its blocks, it needs no more.
    assert predict(LLAMA_8B, vllm(8000, 1, "--block-size=16")).cache == (500 + 1) * 2 * MIB
    in_ram = replace(vllm(8000, 1), kind="ram")
    assert predict(LLAMA_8B, in_ram).cache == (63 + 1) * SPARE * MIB


@pytest.mark.parametrize(("kind", "part"), [("fp8", 0.5), ("fp8_e5m2", 0.5), ("auto", 1), ("bfloat16", 1)])
def test_a_smaller_type_makes_a_smaller_cache(kind, part):
    assert cache(LLAMA_8B, vllm(8192, 4, f"--kv-cache-dtype={kind}")) == part * (4096.0 + SPARE)


def test_heads_are_split_over_cards_down_to_one():
    assert cache(LLAMA_8B, vllm(tensor_parallel=2)) == (4096 + SPARE) / 2
    assert cache(LLAMA_8B, vllm(tensor_parallel=16)) == (4096 + SPARE) / 8


def test_a_latent_cache_is_on_every_card():
    assert cache(DEEPSEEK, vllm(tensor_parallel=8)) == cache(DEEPSEEK, vllm())


def test_a_window_and_the_batch_bound_what_is_remembered():
    sliding = replace(LLAMA_8B, attention=(Attention(8, 128, 128, window=1024),) * 32)
    # In blocks of 16 MiB: the window, which may begin within one, two batches under way, and the spare one.
    assert cache(sliding, vllm(32_768, 1)) == (1024 / 128 + 1 + 2 * 2048 / 128 + 1) * SPARE
    assert cache(sliding, vllm(32_768, 1, "--max-num-batched-tokens=8192")) == (9 + 2 * 8192 / 128 + 1) * SPARE
    # Batches are shared by all requests, windows are not.
    assert cache(sliding, vllm(32_768, 4)) == (4 * 9 + 2 * 2048 / 128 + 1) * SPARE
    assert cache(sliding, vllm(512, 1)) == (512 / 128 + 1 + 1) * SPARE


def test_without_a_word_on_slots_vllm_wants_eight_contexts_and_can_do_with_one():
    found = predict(LLAMA_8B, vllm(8192, None))
    assert (found.cache, found.cache_least) == (8 * GIB + SPARE * MIB, GIB + SPARE * MIB)
    sure = predict(LLAMA_8B, vllm(8192, 4))
    assert sure.cache == sure.cache_least == 4 * GIB + SPARE * MIB


def test_the_operators_own_cache_is_taken_as_it_is():
    assert cache(LLAMA_8B, vllm(8192, None, "--kv-cache-memory-bytes=1073741824")) == 1024.0


# --- Weights


def test_weights_are_split_over_cards():
    assert predict(LLAMA_8B, vllm(tensor_parallel=4)).weights == 96_576_768 // 4


@pytest.mark.parametrize(
    ("stored", "args", "size"),
    [
        ("F32", (), 500),
        ("F32", ("--dtype=float32",), 1000),
        ("BF16", (), 1000),
        ("BF16", ("--dtype", "float32"), 2000),
        ("BF16", ("--quantization=fp8",), 200 + 800 * 0.5),
        ("FP8", ("--quantization=fp8",), 1000),
    ],
)
def test_vllm_loads_weights_in_the_type_that_it_is_given(stored, args, size):
    facts = replace(LLAMA_8B, quantisation=stored, weight_bytes=1000 * MIB, embedding_weight_bytes=200 * MIB)
    assert predict(facts, vllm(8192, 4, *args)).weights == size * MIB


def test_layers_that_stay_in_ram_are_not_on_the_card():
    demand = replace(llama_cpp(2048, 4, "--n-gpu-layers=10"), kind="gpu")
    # Of the ten the output is one.
    assert predict(SMOLLM2, demand).weights == pytest.approx(96_576_768 * 9 / 30, abs=1)


def test_weights_that_llama_cpp_repacks_count_twice_and_the_file_can_be_dropped():
    facts = replace(SMOLLM2, quantisation="Q4_0", embedding_weight_bytes=30 * MIB)
    found, plain = predict(facts, llama_cpp(2048, 4)), predict(SMOLLM2, llama_cpp(2048, 4))
    assert found.droppable == 96_576_768 - 30 * MIB
    assert found.total - plain.total == found.droppable
    assert predict(facts, replace(llama_cpp(2048, 4), kind="gpu")).droppable == 0


def test_the_sum_is_a_sum_beside_the_rule_of_thumb():
    found = predict(LLAMA_8B, vllm())
    assert found.total == found.weights + found.cache + found.overhead
    assert found.rule_of_thumb == found.weights * 1.5


@pytest.mark.parametrize(
    ("context", "slots", "measured"),
    # MB of MiniLM (F16) after an input that filled its context.
    [(512, 1, 154.8)],
)
def test_an_encoder_of_llama_cpps_takes_a_number_for_each_word_and_token(context, slots, measured):
    minilm = replace(
        SMOLLM2,
        quantisation="F16",
        weight_bytes=45_950_000,
        layers=6,
        attention=(),
        hidden=384,
        vocabulary=30_522,
        context=512,
    )
    demand = Demand(launcher="xllamacpp", task="embedding", kind="ram", context=context, slots=slots)
    assert predict(minilm, demand).total / 1e6 == pytest.approx(measured, rel=0.1)
    fewer = predict(replace(minilm, vocabulary=10_000), demand)
    per_word = (predict(minilm, demand).total - fewer.total) / 20_522
    assert per_word == pytest.approx(512 * 4 + llama_cpp_memory.PER_WORD)
    # Of a model on GPUs they lie in RAM.
    on_card = Demand(launcher="llama-server", task="embedding", context=512, slots=4)
    assert predict(minilm, on_card).host - predict(replace(minilm, vocabulary=1), on_card).host == 512 * 4 * 30_521


# --- The models that this system was made for: not measured here, so the bounds are wide


def test_a_9b_model_in_fp8_fits_a_card_of_24_gb(tmp_path):
    facts = model_files.read_model("vllm", str(paper_models.ezo_9b(tmp_path / "ezo")))
    found = predict(facts, vllm(8192, 4, "--quantization=fp8"))
    assert 9 < found.weights / 1e9 < 11.5
    assert 15 < found.total / 1e9 < 24


def test_a_70b_model_in_int4_fits_one_card_of_80_gb_or_two_of_48(tmp_path):
    facts = model_files.read_model("vllm", str(paper_models.llama_70b_awq(tmp_path / "llama")))
    one = predict(facts, vllm(8192, 4))
    two = predict(facts, vllm(8192, 4, tensor_parallel=2))
    assert 39 < one.weights / 1e9 < 41
    assert one.cache == (4 * 8192 + 128) * 80 * 8 * 256 * 2
    assert 50 < one.total / 1e9 < 80
    assert 27 < two.total / 1e9 < 48


# --- Learning


def past(measured, mark="x", version="1", overhead=1000, **more):
    about = {"launcher": "vllm", "device": "RAM", "weights": 4000, "cache": 1000} | more
    return Measured(fingerprint=mark, version=version, overhead=overhead * MIB, measured=measured * MIB, **_mib(about))


def _mib(about):
    return {name: value * MIB if name in ("weights", "cache") else value for name, value in about.items()}


PREDICTED = estimate.make_prediction(
    weights=4000 * MIB,
    cache=1000 * MIB,
    cache_least=1000 * MIB,
    overhead=1000 * MIB,
    devices=1,
    context=1,
    sequences=1,
)


def learned(*rows, mark="new", version="1"):
    return apply_measurements(PREDICTED, rows, mark=mark, launcher="vllm", version=version, device="RAM")


def test_what_this_very_start_took_is_what_it_will_take():
    found = learned(past(6300, mark="m"), past(9000), mark="m")
    assert (found.total, found.basis) == (6300 * MIB, "measured")
    assert found.total == found.weights + found.cache + found.overhead


def test_one_that_took_less_than_its_files_is_believed():
    found = learned(past(4500, mark="m"), mark="m")
    assert (found.total, found.overhead, found.weights) == (4500 * MIB, 0, 3500 * MIB)


def test_others_correct_the_overhead_by_their_median():
    found = learned(past(6100), past(6200), past(6400))
    assert (found.overhead, found.basis) == (1200 * MIB, "corrected")
    assert found.total == 6200 * MIB


def test_a_correction_is_bounded():
    assert learned(past(9000), past(9000)).overhead == (1000 + 512) * MIB
    assert learned(past(3000), past(3000)).overhead == (1000 - 512) * MIB


@pytest.mark.parametrize(
    "row",
    [
        past(6500, version="2"),
        past(6500, device="NVIDIA L4"),
        past(6500, launcher="llama-server"),
        past(10),
        past(60_000),
        past(0),
    ],
)
def test_nothing_is_learned_from_others_or_from_nonsense(row):
    assert learned(row) == PREDICTED
    assert learned(replace(row, fingerprint="m"), mark="m") == PREDICTED


def test_a_version_that_is_not_known_yet_learns_from_any():
    assert learned(past(6100, version="7"), version="").basis == "corrected"


def test_a_fingerprint_is_of_all_that_changes_the_memory():
    demand = vllm()
    plain = estimate.fingerprint(LLAMA_8B, demand, PREDICTED)
    assert plain == estimate.fingerprint(LLAMA_8B, vllm(), PREDICTED)
    others = [
        estimate.fingerprint(SMOLLM2, demand, PREDICTED),
        estimate.fingerprint(LLAMA_8B, replace(demand, context=4096), PREDICTED),
        estimate.fingerprint(LLAMA_8B, replace(demand, args=("--enforce-eager",)), PREDICTED),
        estimate.fingerprint(LLAMA_8B, demand, replace(PREDICTED, cache=1)),
    ]
    assert len({plain, *others}) == 5


# --- Allocations and the arguments that engines get


def allot(spec, facts, devices, **more):
    launcher = "vllm" if spec.engine == "vllm" else "llama-server"
    return allocation.allocate(spec, facts, launcher, [f"/opt/{launcher}"], devices, **more)


def test_vllm_gets_its_cache_in_bytes_and_its_part_of_the_card():
    devices = gpus.list_devices(nvml=two_a100())
    spec = Spec(engine="vllm", name="m", path="/m", context=8192, slots=4, tensor_parallel=2)
    found = allot(spec, LLAMA_8B, devices)
    assert found.devices == (0, 1)
    place = base.EngineEndpoint(address="127.0.0.1", port=1, api_key="k", grace=1)
    command = launched_by("vllm").build_command(spec, ("vllm",), place, {"CUDA_VISIBLE_DEVICES": "0,1,2"}, found.grant)
    argv = " ".join(command.argv)
    assert "--tensor-parallel-size 2" in argv
    assert f"--kv-cache-memory-bytes {2 * GIB + 8 * MIB}" in argv
    assert f"--gpu-memory-utilization {found.fraction:.4f}" in argv
    assert 0.02 < found.fraction < 0.04
    assert command.env["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"context": 8192, "slots": 4}, ("8192", "4", "2048")),
        ({"context": 8192}, ("8192", "256", "2048")),
        ({}, ("8192", "256", "2048")),  # the model's own context
        ({"context": 128, "slots": 1}, ("128", "1", "128")),
        ({"args": ("--max-num-seqs=512", "--max-num-batched-tokens", "16384")}, ("8192", "512", "16384")),
        ({"args": ("--max-num-seqs=4000",)}, ("8192", "4000", "4000")),
        ({"task": "embedding"}, ("8192", "256", "8192")),  # an encoder reads an input in one piece
        ({"task": "transcription", "context": 448}, ("448", "256", "2048")),
    ],
)
def test_e2_vllm_is_given_how_much_it_computes_at_a_time_on_any_card(spec, said):
    """Its own choice depends on the card: four times the tokens and the requests on one of 80 GB."""
    facts = replace(LLAMA_8B, attention=()) if spec.get("task") == "embedding" else LLAMA_8B
    spec = Spec(engine="vllm", name="m", path="/m", **spec)
    found = allot(spec, facts, gpus.list_devices(nvml=two_a100()))
    place = base.EngineEndpoint(address="127.0.0.1", port=1, api_key="k", grace=1)
    argv = launched_by("vllm").build_command(spec, ("vllm",), place, {}, found.grant).argv
    read = arguments.read_arguments("vllm", argv)
    told = tuple(read.text(name) for name in ("--max-model-len", "--max-num-seqs", "--max-num-batched-tokens"))
    assert told == said
    assert (str(found.prediction.parallel), str(found.prediction.batch)) == said[1:]
    assert sum(arg.partition("=")[0] == "--max-num-seqs" for arg in argv) == 1


def test_an_operators_argument_about_vllms_memory_is_the_only_one():
    devices = gpus.list_devices(nvml=two_a100())
    spec = Spec(engine="vllm", name="m", path="/m", context=8192, args=("--gpu-memory-utilization=0.5",))
    found = allot(spec, LLAMA_8B, devices)
    # Its context it takes beside that part, without counting it.
    assert found.prediction.total == pytest.approx(85_899_345_920 / 2 + vllm_memory.CUDA_CONTEXT, abs=MIB)
    place = base.EngineEndpoint(address="127.0.0.1", port=1, api_key="k", grace=1)
    argv = " ".join(launched_by("vllm").build_command(spec, ("vllm",), place, {}, found.grant).argv)
    assert "--kv-cache-memory-bytes" not in argv
    assert argv.count("--gpu-memory-utilization") == 1


def test_vllm_for_cpus_gets_no_card_and_no_value_for_all_models():
    spec = Spec(engine="vllm", name="m", path="/m", context=8192, slots=4)
    devices = gpus.list_devices(nvml=two_a100())
    found = allocation.allocate(spec, SMOLLM2, "vllm", ["/c/engines/vllm-0.32.0+cpu/bin/python"], devices)
    assert (found.devices, found.device) == ((), "RAM")
    place = base.EngineEndpoint(address="127.0.0.1", port=1, api_key="k", grace=1)
    command = launched_by("vllm").build_command(spec, ("vllm",), place, {"VLLM_CPU_KVCACHE_SPACE": "4"}, found.grant)
    assert "VLLM_CPU_KVCACHE_SPACE" not in command.env
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""
    assert "--gpu-memory-utilization" not in command.argv


def test_llama_cpp_puts_all_layers_on_its_cards_in_equal_parts():
    devices = gpus.list_devices(nvml=two_a100())
    place = base.EngineEndpoint(address="127.0.0.1", port=1, api_key="k", grace=1)

    def said(**fields):
        spec = Spec(engine="llama.cpp", name="m", path="/m", context=2048, **fields)
        found = allot(spec, SMOLLM2, devices)
        command = launched_by("llama-server").build_command(spec, ("llama-server",), place, {}, found.grant)
        return " ".join(command.argv), command.env["CUDA_VISIBLE_DEVICES"]

    argv, visible = said()
    assert "--n-gpu-layers 999" in argv
    assert visible == "0"
    argv, visible = said(tensor_parallel=2, gpus=(1, 0))
    assert "--tensor-split 1,1" in argv
    assert visible == "0,1"
    argv, visible = said(args=("--n-gpu-layers=0",))
    assert "--cache-ram 0" in argv
    assert visible == ""


def test_an_allocation_comes_back_from_a_run():
    spec = Spec(engine="vllm", name="m", path="/m", context=8192, slots=4)
    found = allot(spec, LLAMA_8B, gpus.list_devices(nvml=two_a100()), version="0.32.0")
    assert allocation.Allocation.of(found.stored()) == found


def test_two_that_start_at_a_time_do_not_count_on_the_same_memory():
    devices = gpus.list_devices(nvml=two_a100())[:1]
    spec = Spec(engine="vllm", name="m", path="/m", context=65_536, slots=6)  # 48 GiB of cache
    first = allot(spec, LLAMA_8B, devices)
    tenant = allocation.HostedReplica(name="m #0", allocation=first, run=None, settled=False)
    [occupant] = allocation.occupants([tenant], devices)
    shares = occupant.shares
    assert [(share.device, share.pledged) for share in shares] == [(0, first.needed), (gpus.RAM, 3 * GIB)]
    with pytest.raises(NoRoom):
        allot(spec, LLAMA_8B, devices, shares=shares)


def test_where_the_driver_reports_nothing_a_settled_engine_holds_what_it_was_promised():
    devices = gpus.list_devices(nvml=two_a100())
    spec = Spec(engine="vllm", name="m", path="/m", context=8192, slots=4)
    tenant = allocation.HostedReplica(name="m #0", allocation=allot(spec, LLAMA_8B, devices), run=None, settled=True)
    [occupant] = allocation.occupants([tenant], devices)
    assert [share.pledged for share in occupant.shares if share.device != gpus.RAM] == [0]


# --- What processes hold


HOLD = """
import mmap, sys
own = bytearray(b"x") * 100_000_000
file = open(sys.argv[1], "rb")
weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(weights[::4096])
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(mmap.PAGESIZE) * (50_000_000 // mmap.PAGESIZE))
    return path


@pytest.fixture
def holder(weights):
    """Start processes that hold 100 MB of their own and have 50 MB of one file mapped."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, weights], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "there\n"
        who = shim.identify(process.pid)
        assert isinstance(who, Identity)
        return who

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_mapped_file_counts_but_can_be_dropped(holder):
    found = measure_held([holder()])
    assert found.fixed == pytest.approx(105_000_000, rel=0.1)
    assert found.taken - found.fixed == pytest.approx(57_000_000, rel=0.15)  # the file, and Python's own


def test_processes_of_one_engine_share_a_file_and_it_counts_once(holder):
    alone, both = measure_held([one := holder()]), measure_held([one, holder()])
    assert both.taken - alone.taken == pytest.approx(105_000_000, rel=0.1)


def test_what_is_shared_with_others_of_the_host_is_ours_all_the_same(holder):
    one = holder()
    before = measure_held([one]).taken
    holder()
    assert measure_held([one]).taken == pytest.approx(before, rel=0.02)


def test_one_that_is_gone_holds_nothing(holder):
    assert measure_held([replace_pid(holder(), 2**22 - 1)]).taken == 0


def replace_pid(who, pid):
    return Identity(pid, *who[1:])


# --- over several hosts


def test_each_host_has_its_part_of_the_cards():
    here = predict(LLAMA_8B, vllm(tensor_parallel=8, nodes=2))
    alone = predict(LLAMA_8B, vllm(tensor_parallel=8))
    assert (here.devices, alone.devices) == (4, 8)
    assert (here.weights, here.cache) == (alone.weights, alone.cache)
    assert here.host < alone.host


def test_a_stage_has_its_layers_and_the_embedding_or_the_output():
    facts = replace(LLAMA_8B, quantisation="BF16", layers=32, weight_bytes=16 * GIB, embedding_weight_bytes=GIB)
    whole = predict(facts, vllm(8192, 4, tensor_parallel=2))
    part = predict(facts, vllm(8192, 4, "--pipeline-parallel-size=2", tensor_parallel=2, stages=2, nodes=2))
    assert part.devices == 2
    assert part.weights == (GIB + 15 * GIB // 2) // 2
    assert part.cache == whole.cache // 2


def test_the_largest_of_uneven_stages_counts():
    facts = replace(LLAMA_8B, quantisation="BF16", layers=32, weight_bytes=32 * GIB, embedding_weight_bytes=0)
    part = predict(facts, vllm(8192, 4, "--pipeline-parallel-size=3", stages=3, nodes=3))
    assert part.weights == 11 * GIB
    assert part.cache == predict(replace(facts, attention=facts.attention[:11]), vllm()).cache


def test_cards_of_several_hosts_are_linked_even_where_each_has_one():
    assert predict(LLAMA_8B, vllm(tensor_parallel=2, nodes=2)).apart == predict(LLAMA_8B, vllm(tensor_parallel=2)).apart


def test_what_was_measured_before_models_had_several_hosts_still_counts():
    demand = vllm()
    known = {name: value for name, value in asdict(demand).items() if name not in ("stages", "nodes", "rank")}
    parts = [asdict(LLAMA_8B), known, 5]
    before = sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    prediction = replace(predict(LLAMA_8B, demand), cache=5)
    assert estimate.fingerprint(LLAMA_8B, demand, prediction) == before
    assert estimate.fingerprint(LLAMA_8B, replace(demand, nodes=2), prediction) != before


def test_what_one_rank_took_is_not_taken_for_what_another_one_takes():
    spec = Spec(engine="vllm", name="m", path="/m", tensor_parallel=2, nodes=2)
    demands = [Demand.of(replace(spec, rank=rank), "vllm", "gpu") for rank in range(2)]
    prediction = predict(LLAMA_8B, demands[0])
    assert len({estimate.fingerprint(LLAMA_8B, demand, prediction) for demand in demands}) == 2
