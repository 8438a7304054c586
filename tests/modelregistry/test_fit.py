"""One answer to "does it fit, where, and what would have to go?" for page, API, command and supervisor."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from modelregistry import fit, placement_messages
from modelregistry.engines import programs
from modelregistry.engines.base import Spec
from modelregistry.engines.registry import engine_named
from modelregistry.engines.version_trials import FAILED, PROVEN, Choice, Trial
from modelregistry.files.metadata import ModelMetadata
from modelregistry.hostside import launching
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.surface import LaunchRefused
from modelregistry.memory import allocation, estimate, placement
from modelregistry.memory.allocation import FitResult, HostedReplica, Occupant
from modelregistry.memory.estimate import GIB, Demand, predict
from modelregistry.models import EngineTrial, Host, HostReport, Replica, ServedModel
from modelregistry.overview import MADE_UP
from modelregistry.process.gpus import RAM, Device
from tests.modelregistry import paper_models
from tests.modelregistry.planning import LLAMA_8B, card, ram

MIXTRAL = replace(LLAMA_8B, weight_bytes=20 * GIB, experts=(0, *(GIB // 2,) * 31))
ALIVE = {
    **{"name": "h", "maintenance": False, "seen_at": MADE_UP, "watched_at": None, "silent_since": None},
    **{"clustered": False, "bookings": None},
}
UNKNOWN = {"installed": {}, "stamps": {}, "default_versions": {}}  # of our installations
PROGRAM = ["/engines/vllm-0.32.0/bin/python"]


def spec(**more: object) -> Spec:
    return Spec(**{"engine": "vllm", "name": "m", "path": "/m", "context": 8192, "slots": 4, **more})


def ask(
    asked: Spec, devices: list[Device], occupants: Sequence[Occupant] = (), facts: ModelMetadata = LLAMA_8B
) -> FitResult:
    launcher = "vllm" if asked.engine == "vllm" else "llama-server"
    return allocation.check_fit(asked, facts, launcher, [f"/opt/{launcher}"], devices, occupants=occupants)


# --- All who ask


@st.composite
def hosts(draw: st.DrawFn) -> tuple[list[Device], list[HostedReplica]]:
    """Draw cards and what runs on them: each replica took what it was promised, or nothing yet."""
    count = draw(st.integers(1, 3))
    sizes = [draw(st.sampled_from([16, 24, 48, 80])) for _ in range(count)]
    tenants, used = [], [draw(st.integers(0, 6)) * GIB for _ in range(count)]
    for number in range(draw(st.integers(0, 4))):
        where = draw(st.integers(0, count - 1))
        weights = draw(st.integers(1, 24)) * GIB
        settled = draw(st.booleans())
        need = estimate.make_prediction(
            **{"weights": weights, "cache": GIB, "cache_least": GIB, "overhead": GIB, "devices": 1, "context": 1},
            **{"sequences": 1, "host": draw(st.sampled_from([0, 3, 30])) * GIB},
            droppable=draw(st.sampled_from([0, weights // 2])),
        )
        given_to = allocation.Allocation(
            **{"prediction": need, "formula": need, "devices": (where,), "visible": (str(where),), "fraction": 0.5},
            **{"forced": False, "fingerprint": "x", "launcher": "vllm", "version": "", "device": "A"},
        )
        tenants.append(HostedReplica(name=f"m{number} #0", allocation=given_to, run=None, settled=settled))
        used[where] += given_to.needed * settled
    devices = [
        Device(index=at, uuid="", name="A", kind="gpu", total=size * GIB, used=taken, free=max(0, size * GIB - taken))
        for at, (size, taken) in enumerate(zip(sizes, used, strict=True))
    ]
    return [*devices, ram(draw(st.sampled_from([16, 64, 256])))], tenants


def row(tenant: HostedReplica) -> Replica:
    """Return the same as its supervisor wrote it down."""
    promised = tenant.allocation
    model, _zero = tenant.name.split(" #")
    held = {str(device): promised.needed for device in promised.devices} if tenant.settled else {}
    held = held or dict.fromkeys(map(str, promised.devices), 0)
    return Replica(
        model=ServedModel(pk=7, name=model),
        index=0,
        predicted=asdict(promised.prediction),
        devices=list(promised.devices),
        memory_by_device=held,
        memory_bytes=sum(held.values()),
        memory_fixed=0,
    )


asked = st.builds(
    spec,
    context=st.sampled_from([2048, 8192, 131_072]),
    slots=st.sampled_from([None, 1, 4, 16]),
    tensor_parallel=st.sampled_from([1, 2]),
    gpus=st.sampled_from([(), (0,), (0, 1)]),
    args=st.sampled_from([(), ("--cpu-offload-gb=4",), ("--enable-sleep-mode",)]),
)


@settings(max_examples=80, deadline=None)
@given(hosts(), asked, st.sampled_from([0, 10, 70]))
def test_page_api_and_command_answer_as_the_supervisor_does(host, wanted, booked):
    devices, tenants = host
    others = {0: booked * GIB}  # by other work on the cluster
    occupants = allocation.occupants(tenants, devices)
    seen = placement.with_reserved(devices, [share for one in occupants for share in one.shares], others)
    supervisors = allocation.check_fit(wanted, LLAMA_8B, "vllm", PROGRAM, seen, occupants=occupants, version="0.32.0")
    report = SimpleNamespace(devices=[asdict(device) for device in devices], engines={"vllm": "0.32.0"}, **UNKNOWN)
    rows = [row(tenant) for tenant in tenants]
    bookings = {"clustered": True, "bookings": {"others": {"0": others[0]}}}
    told = SimpleNamespace(**ALIVE | bookings, report=report, replica_set=SimpleNamespace(all=lambda: rows))
    foreseen = fit.fit_on_host(wanted, LLAMA_8B, told, [], None)
    assert foreseen.fits == foreseen.room == supervisors.fits
    assert foreseen.devices == (supervisors.allocation.devices if supervisors.allocation else ())
    assert (foreseen.prediction, foreseen.to_go) == (supervisors.need, supervisors.to_go)
    assert foreseen.why_not == placement_messages.explain_refusal(supervisors)
    assert bool(foreseen.why_not) != foreseen.fits


@pytest.mark.parametrize(
    "state",
    [
        {"maintenance": True},
        {"seen_at": None},
        {"seen_at": timezone.now() - timedelta(seconds=61)},
        {"seen_at": timezone.now() + timedelta(days=9)},
        {"watched_at": MADE_UP, "silent_since": timezone.now() - timedelta(seconds=20)},
    ],
)
def test_nothing_can_be_started_on_a_host_that_is_silent_or_in_maintenance(state):
    report = SimpleNamespace(devices=[asdict(card(0, 80, 0)), asdict(ram())], engines={"vllm": "0.32.0"}, **UNKNOWN)
    told = SimpleNamespace(**ALIVE | state, report=report, replica_set=SimpleNamespace(all=list))
    found = fit.fit_on_host(spec(), LLAMA_8B, told, [], None)
    assert (found.fits, found.room) == (False, True)
    assert found.unavailable
    assert found.reasons == found.why_not.splitlines() == [found.unavailable]


def test_a_look_ahead_asks_for_the_version_that_the_model_is_pinned_to():
    """What other versions were measured to take says nothing of it, and where it is missing it cannot start."""
    report = SimpleNamespace(
        devices=[asdict(card(0, 80, 0)), asdict(ram())],
        engines={"vllm": "0.33.0"},
        **UNKNOWN | {"installed": {"vllm": ["0.33.0", "0.32.0"]}},
    )
    told = SimpleNamespace(**ALIVE, report=report, replica_set=SimpleNamespace(all=list))
    there = fit.fit_on_host(spec(version="0.32.0"), LLAMA_8B, told, [], None)
    assert there.fits
    gone = fit.fit_on_host(spec(version="0.31.0"), LLAMA_8B, told, [], None)
    assert (gone.fits, gone.room) == (False, True)
    assert "0.31.0" in gone.why_not
    learned = [
        estimate.Measured(
            **{"fingerprint": "", "launcher": "vllm", "version": "0.33.0", "device": "A"},
            **{"weights": 10 * GIB, "cache": GIB, "overhead": GIB, "measured": 13 * GIB},
        )
    ]
    assert fit.fit_on_host(spec(version="0.32.0"), LLAMA_8B, told, learned, None).prediction == there.prediction
    newest = fit.fit_on_host(spec(), LLAMA_8B, told, learned, None)
    assert newest.prediction != there.prediction


LAUNCHER_VERSIONS = [
    (launcher, version) for launcher in list(engine_named("llama.cpp").launchers()) for version in ("2.0", "1.0")
]


@settings(max_examples=150, deadline=None)
@given(
    installed=st.sets(st.sampled_from(LAUNCHER_VERSIONS), min_size=1),
    named=st.sets(st.sampled_from(list(engine_named("llama.cpp").launchers())), max_size=1),
    tried=st.lists(
        st.tuples(st.sampled_from(LAUNCHER_VERSIONS), st.sampled_from([PROVEN, FAILED]), st.booleans()),
        unique_by=lambda one: one[0],
    ),
    wanted=st.sampled_from([{}, {"version": "1.0"}, {"launcher": "xllamacpp"}, {"task": "rerank"}]),
)
def test_page_and_command_look_ahead_with_the_engine_that_the_supervisor_starts(installed, named, tried, wanted):
    with TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        cache = Path(place)
        for launcher, version in installed:
            install(cache, launcher, version)
        asked_for = spec(engine="llama.cpp", path=str(paper_models.gguf(cache / "m.gguf")), **wanted)
        config = HostConfig(runs=cache, cache=cache, commands=dict.fromkeys(named, "/opt/own"), ports=[])
        there = programs.all_installed(cache)
        stamps = programs.group_stamps(there)
        trials = [
            Trial(launcher=of, version=version, stamp=stamps.get(of, {}).get(version, "") + "!" * stale, state=state)
            for (of, version), state, stale in tried
        ]
        found = programs.find_engines(config.commands, cache, "")
        usual = programs.default_versions(found, there)
        report = SimpleNamespace(
            engines={launcher: version or "9.0" for launcher, version in usual.items()},
            **{"installed": programs.group_versions(there), "stamps": stamps, "default_versions": usual},
        )
        foreseen, missing = fit.engine_on_host(SimpleNamespace(**ALIVE, report=report), asked_for, trials)
        try:
            chosen = launching.choose_engine(config, asked_for, trials=trials)
        except LaunchRefused:
            assert missing
            return
    assert not missing
    assert (foreseen.launcher, foreseen.usual) == (chosen.launcher, chosen.usual)
    assert described(foreseen.choice) == described(chosen.choice)
    assert foreseen.measured_version(report.engines) == chosen.measured_version(report.engines)


def install(cache: Path, launcher: str, version: str) -> None:
    program = cache / f"engines/{launcher}-{version}/bin" / ("llama-server" if launcher == "llama-server" else "python")
    program.parent.mkdir(parents=True)
    program.touch()


def described(choice: Choice | None) -> tuple[str, str, bool, str] | None:
    return (choice.installed.version, choice.installed.stamp, choice.trial, choice.instead) if choice else None


@pytest.mark.django_db
def test_a_registered_model_is_foreseen_with_the_launcher_that_is_proven_on_that_host():
    model = ServedModel.objects.create(name="m", engine="llama.cpp", path="/m.gguf")
    for name in ("near", "far"):
        host = Host.objects.create(name=name, seen_at=MADE_UP)
        HostReport.objects.create(
            **{"host": host, "devices": [asdict(ram())], "at": timezone.now()},
            **{"engines": {"llama-server": "b9", "xllamacpp": "1.0"}, "default_versions": {"llama-server": "9.0.0"}},
            **{"installed": {"llama-server": ["9.0.0"], "xllamacpp": ["1.0"]}, "stamps": {"xllamacpp": {"1.0": "s"}}},
        )
    EngineTrial.objects.create(
        **{"host": Host.objects.get(name="near"), "model": model, "launcher": "xllamacpp", "version": "1.0"},
        **{"stamp": "s", "state": PROVEN, "at": timezone.now()},
    )
    wanted = spec(engine="llama.cpp")
    found = {one.host: one.launcher for one in fit.fit_on_hosts(wanted, LLAMA_8B, fit.hosts(), model=model.pk)}
    assert found == {"near": "xllamacpp", "far": "llama-server"}
    new = {one.host: one.launcher for one in fit.fit_on_hosts(wanted, LLAMA_8B, fit.hosts())}
    assert new == {"near": "llama-server", "far": "llama-server"}


@settings(max_examples=80, deadline=None)
@given(hosts(), asked)
def test_what_is_given_is_there_and_what_is_to_go_suffices(host, wanted):
    devices, tenants = host
    there = allocation.occupants(tenants, devices)
    found = ask(wanted, devices, there)
    shares = [share for one in there for share in one.shares]
    free = {device.index: placement.free_room(device, shares).free for device in devices}
    if found.allocation:
        assert all(found.allocation.needed <= free[index] for index in found.allocation.devices)
        assert found.allocation.prediction.host <= free[RAM]
    if found.to_go:
        assert not found.fits
        for count in range(len(found.to_go)):
            for fewer in combinations(found.to_go, count):
                assert not without(wanted, devices, there, fewer).fits
        assert without(wanted, devices, there, found.to_go).fits


def without(wanted: Spec, devices: list[Device], there: list[Occupant], gone: tuple[str, ...]) -> FitResult:
    left = [one for one in there if one.name not in gone]
    return ask(wanted, fit.devices_without(devices, [one for one in there if one.name in gone]), left)


def test_e3_an_unknown_cache_gets_a_card_of_its_own_or_a_reason_why_not():
    odd = replace(LLAMA_8B, attention=(), missing=("num_attention_heads",))
    there = [occupant("a #0", 20, device=0)]
    found = ask(spec(), [card(0, 80, 20), card(1, 48, 0), ram()], there, odd)
    assert found.allocation
    assert found.allocation.devices == (0,)  # where most is left
    beside = Occupant(name="odd #0", needed=found.allocation.needed, devices=(0,), held={})
    assert placement.free_room(card(0, 80, 20), [*there[0].shares, *beside.shares]).free < estimate.MIB
    refused = ask(spec(), [card(0, 16, 0), ram()], facts=odd)
    assert refused.need
    assert refused.need.total < 24 * GIB
    assert refused.need.open
    unplanned = ask(spec(), [ram()], facts=odd)
    assert isinstance(unplanned.refusal, estimate.Unpredictable)
    assert "num_attention_heads" in placement_messages.explain_refusal(unplanned)


# --- What would have to go


def occupant(name: str, gib: int, device: int = 0, host: int = 0) -> Occupant:
    return Occupant(name=name, needed=gib * GIB, devices=(device,), host=host * GIB, held={device: gib * GIB})


def test_the_smallest_that_makes_room_has_to_go():
    devices = [card(0, 80, 78), ram()]
    there = [occupant("a #0", 40), occupant("b #0", 30), occupant("c #0", 8)]
    assert ask(spec(), devices, there).to_go == ("b #0",)
    both = ask(spec(context=65_536), devices, there)  # 16 GB of weights and 34 of cache
    assert both.to_go == ("a #0", "b #0") or both.to_go == ("c #0", "a #0")
    assert ", ".join(both.to_go) in placement_messages.explain_refusal(both).splitlines()[-1]


def test_a_refusal_says_what_the_model_needs_at_least_and_what_it_wants_beside_it():
    """An engine wants the cache of eight whole contexts (vLLM), and starts with that of one."""
    wanted = spec(context=131_072, slots=None)
    refused = ask(wanted, [card(0, 48, 30), ram()], [occupant("a #0", 30)])
    assert refused.need
    least = predict(LLAMA_8B, Demand(launcher="vllm", task="chat", context=131_072, slots=1))
    assert (refused.need.sequences, refused.need.cache) == (1, least.cache)
    assert refused.need.total == refused.need.weights + least.cache + refused.need.overhead
    assert refused.to_go == ("a #0",)
    first, second = placement_messages.explain_refusal(refused).splitlines()[:2]
    assert f"{refused.need.total / 1e9:.1f} GB" in first
    whole = predict(LLAMA_8B, Demand(launcher="vllm", task="chat", context=131_072))
    assert f"{whole.total / 1e9:.1f} GB" in second
    assert f"8 × {131_072}" in second
    assert ask(wanted, [card(0, 48, 0), ram()]).fits


def test_a_refusal_of_what_the_engine_cannot_do_without_says_it_once():
    refused = ask(spec(context=131_072, slots=8), [card(0, 48, 0), ram()])
    assert "GPU 0" in placement_messages.explain_refusal(refused).splitlines()[1]


def test_a_split_model_on_a_host_without_gpus_is_refused_as_there_are_none():
    refused = ask(spec(tensor_parallel=2), [ram()])
    assert isinstance(refused.refusal, placement.NoSuchDevice)
    assert (refused.refusal.missing, refused.refusal.wanted, refused.refusal.usable) == ((), 2, 0)
    split = ask(spec(tensor_parallel=2), [card(0, 80, 0), ram()]).refusal
    assert isinstance(split, placement.NoSuchDevice)
    assert split.usable == 1
    explain = placement_messages.explain_missing_device
    assert explain(refused.refusal) != explain(split)


def test_no_model_has_to_go_where_it_would_not_fit_alone():
    assert ask(spec(), [card(0, 16, 10), ram()], [occupant("a #0", 10)]).to_go == ()


def test_e12_two_free_cards_for_a_file_of_42_gb_are_an_advice():
    big = replace(LLAMA_8B, weight_bytes=42_000_000_000)
    devices = [card(0, 24, 0), card(1, 24, 0), ram()]
    assert "--tensor-parallel 2" in placement_messages.explain_refusal(
        ask(spec(engine="llama.cpp", slots=1), devices, facts=big)
    )
    assert "--tensor-parallel" not in placement_messages.explain_refusal(
        ask(spec(engine="llama.cpp"), devices[1:], facts=big)
    )


# --- RAM of models on GPUs


def demand(launcher: str, *args: str, **more: object) -> Demand:
    return Demand(**{"launcher": launcher, "task": "chat", "context": 8192, "slots": 4, "args": args, **more})


@pytest.mark.parametrize(
    ("launcher", "args", "more"),
    [
        ("vllm", (), 0),
        ("vllm", ("--cpu-offload-gb=4",), 4 * GIB),
        ("vllm", ("--cpu-offload-gb", "4", "-tp", "2"), (2 + 4 * 2) * GIB),  # on each card, and a worker for the second
        ("vllm", ("--kv-offloading-size=10",), 10 * GIB),
        ("vllm", ("--enable-sleep-mode",), 16_060_000_000),  # asleep its weights lie in RAM
        ("llama-server", (), 0),
        ("llama-server", ("--cache-ram", "0"), -2 * GIB),
        ("llama-server", ("--no-kv-offload",), 4 * GIB),
        ("llama-cpp-python", ("--logits_all", "true"), (512 + 8192 - 4) * 128_256 * 4),
    ],
)
def test_what_arguments_keep_in_ram_is_planned_there(launcher, args, more):
    cards = 2 if "-tp" in args else 1
    plain = predict(LLAMA_8B, demand(launcher))
    found = predict(LLAMA_8B, demand(launcher, *args, tensor_parallel=cards))
    assert found.host - plain.host == more
    assert plain.host >= (GIB if launcher != "llama-cpp-python" else GIB // 4)  # which keeps no past conversations
    assert predict(LLAMA_8B, demand(launcher, *args, kind="ram")).host == 0


def test_what_is_kept_in_ram_is_not_on_the_card():
    plain = predict(LLAMA_8B, demand("vllm"))
    assert plain.weights - predict(LLAMA_8B, demand("vllm", "--cpu-offload-gb=4")).weights == 4 * GIB
    assert predict(LLAMA_8B, demand("vllm", "--cpu-offload-gb=400")).weights == 0
    whole = predict(MIXTRAL, demand("llama-server"))
    some = predict(MIXTRAL, demand("llama-server", "--n-cpu-moe", "11"))
    assert whole.weights - some.weights == some.host - whole.host == 10 * GIB // 2  # the first layer has no experts
    every = predict(MIXTRAL, demand("llama-server", "--cpu-moe"))
    assert whole.weights - every.weights == every.host - whole.host == 31 * GIB // 2
    there = predict(LLAMA_8B, demand("llama-server", "--no-kv-offload"))
    assert (there.cache, there.cache_least) == (0, 0)


def test_a_model_on_gpus_needs_room_in_ram_as_well():
    devices = [card(0, 80, 0), ram(16, 8)]
    assert ask(spec(), devices).fits
    refused = ask(spec(args=("--enable-sleep-mode",)), devices)
    assert not refused.fits
    assert "RAM" in placement_messages.explain_refusal(refused)
    forced = ask(spec(args=("--enable-sleep-mode",), overcommit=True), devices)
    assert forced.allocation
    assert (forced.allocation.forced, forced.fits) == (True, False)


def test_ram_that_was_promised_to_models_on_gpus_is_not_free():
    devices = [card(0, 80, 0), card(1, 80, 0), ram(32, 8)]
    sleeper = ask(spec(args=("--enable-sleep-mode",)), devices)
    assert sleeper.allocation
    tenant = HostedReplica(name="s #0", allocation=sleeper.allocation, run=None, settled=True)
    [there] = allocation.occupants([tenant], devices)
    assert {share.device for share in there.shares} == {sleeper.allocation.devices[0], RAM}
    second = ask(spec(args=("--enable-sleep-mode",)), devices, [there])
    assert (second.fits, second.to_go) == (False, ("s #0",))
    assert ask(spec(slots=1), devices, [there]).fits


# --- Engines that sleep


def asleep(given: allocation.Allocation, ram_bytes: int = 0) -> HostedReplica:
    return HostedReplica(name="s #0", allocation=allocation.while_asleep(given, ram_bytes), run=None, settled=True)


def awake(given: allocation.Allocation, ram_bytes: int = 0) -> HostedReplica:
    return HostedReplica(name="s #0", allocation=allocation.after_sleep(given, ram_bytes), run=None, settled=True)


def placed(devices: list[Device], **more: object) -> allocation.Allocation:
    found = ask(spec(**more), devices).allocation
    assert found
    return found


def test_a_card_on_which_a_model_sleeps_has_room_for_another_one():
    given = placed([card(0, 24, 0), ram()])
    left = asleep(given).allocation.prediction
    assert (left.weights, left.cache) == (0, 0)
    assert 0.9 * GIB < left.total == left.overhead < 1.2 * GIB  # its context and its graphs
    [there] = allocation.occupants([awake(given)], [card(0, 24, 20), ram()])
    assert not ask(spec(), [card(0, 24, 20), ram()], [there]).fits
    [there] = allocation.occupants([asleep(given)], [card(0, 24, 1), ram()])
    assert ask(spec(), [card(0, 24, 1), ram()], [there]).fits


def test_the_ram_of_a_model_that_sleeps_with_its_weights_stays_taken_when_it_is_awake_again():
    given = placed([card(0, 24, 0), ram(64, 0)])
    weights = allocation.bytes_for_sleep(given)
    assert weights == 16_060_000_000
    devices = [card(0, 24, 0), ram(64, 16)]
    assert allocation.has_ram(weights, [], devices)
    for state in (asleep(given, weights), awake(given, weights)):
        assert not allocation.has_ram(2 * weights, [state], devices)
    assert allocation.has_ram(2 * weights, [asleep(given)], devices)
    assert allocation.has_ram(2 * weights, [awake(given)], devices)


def test_the_weights_of_all_cards_are_kept_in_ram():
    given = placed([card(0, 24, 0), card(1, 24, 0), ram(64, 0)], tensor_parallel=2)
    assert len(given.devices) == 2
    assert allocation.bytes_for_sleep(given) == 16_060_000_000


def test_a_model_wakes_where_it_sleeps_or_not_at_all():
    cards = [card(0, 24, 1), card(1, 24, 0), ram()]
    given = placed([card(0, 24, 0), ram()])
    assert given.devices == (0,)
    assert allocation.find_room_to_wake(given, asleep(given), [], cards).fits
    other = HostedReplica(name="o #0", allocation=placed([card(0, 24, 1), ram()]), run=None, settled=True)
    refused = allocation.find_room_to_wake(given, asleep(given), [other], [card(0, 24, 21), card(1, 24, 0), ram()])
    assert not refused.fits
    assert "o #0" in placement_messages.explain_refusal(refused)  # whose memory it is
    # One that has not taken its memory yet is promised it all the same.
    starting = replace(other, settled=False)
    assert not allocation.find_room_to_wake(given, asleep(given), [starting], cards).fits
    assert not allocation.find_room_to_wake(given, asleep(given), [], [card(1, 24, 0), ram()]).fits


def test_a_model_that_just_fitted_can_wake_again():
    given = placed([card(0, 24, 0), ram()])
    exact = given.needed / GIB + placement.GPU_MARGIN / GIB
    left = asleep(given).allocation.needed / GIB
    assert allocation.find_room_to_wake(given, asleep(given), [], [card(0, exact + 0.001, left), ram()]).fits
    assert not allocation.find_room_to_wake(given, asleep(given), [], [card(0, exact - 0.01, left), ram()]).fits


def test_experts_of_a_gguf_file_are_known_by_layer(tmp_path):
    from modelregistry.files import model_files

    tensors = {
        "token_embd.weight": ("F16", (320, 64)),
        "blk.0.ffn_up.weight": ("F16", (64, 64)),
        **{f"blk.1.ffn_{side}_exps.weight": ("Q8_0", (8, 64, 64)) for side in ("up", "gate", "down")},
    }
    facts = model_files.read_model("llama.cpp", str(paper_models.gguf(tmp_path / "m.gguf", tensors=tensors)))
    assert facts.experts == (0, 3 * 8 * 64 * 64 * 34 // 32)
