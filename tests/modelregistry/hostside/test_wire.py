"""Values on their way between a supervisor and a host: they arrive as they were, and nothing else arrives."""

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass, replace
from enum import Enum
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelregistry.cluster.agent_description import AgentDescription
from modelregistry.engines.arguments import ArgumentFault
from modelregistry.engines.base import CallerIsolation, Spec
from modelregistry.engines.selection import ChosenEngine
from modelregistry.engines.version_trials import Choice, Installed, NoVersion, Trial
from modelregistry.files.metadata import ModelMetadata
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.hostside import wire
from modelregistry.hostside.inspection import MOST_STRANGERS, Inspection
from modelregistry.hostside.own_address import AddressFault
from modelregistry.hostside.remote import METHODS
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.run_metadata import RunMetadata
from modelregistry.hostside.sleep_record import SleepRecord
from modelregistry.hostside.surface import (
    FileFacts,
    FilesRead,
    HostedRun,
    HostSnapshot,
    LaunchOrder,
    LaunchRefusal,
    PlacedReplica,
    RunEnd,
)
from modelregistry.hostside.wire import WireFault
from modelregistry.memory.allocation import Allocation, FitResult
from modelregistry.memory.estimate import Prediction, Unpredictable
from modelregistry.memory.placement import NoRoom, NoSuchDevice, Room, Space
from modelregistry.process.gpus import MOST_DEVICES, Device, Stranger
from modelregistry.process.process import ExitStatus, Life
from modelregistry.transfer.remote import FILE_METHODS
from modelregistry.wire_bounds import AtMost

NEED = Prediction(
    **dict.fromkeys(("weights", "cache", "cache_least", "overhead", "total", "rule_of_thumb"), 2**40),
    devices=2,
    context=4096,
    sequences=3,
)
GRANTED = Allocation(
    prediction=NEED,
    formula=NEED,
    devices=(0, 2),
    visible=("0", "2"),
    fraction=0.8125,
    forced=False,
    fingerprint="f",
    launcher="vllm",
    version="1.2",
    device="NVIDIA 1",
)
INSTALLED = Installed(launcher="vllm", version="1.2", stamp="7 8", program=("/a/python", "-m", "vllm"))
SPEC = Spec(engine="vllm", name="モデル", path="/m", args=("--a", "b\udcff"), gpus=(1,), context=None, slots=3)
ENGINE = ChosenEngine(launcher="vllm", program=INSTALLED.program, choice=Choice(installed=INSTALLED, trial=True))
RECORD = SleepRecord(answer={"text": "はい", "vector": [0.5, 1.0]}, level="level1", ram=7)
LABEL = RunMetadata(
    **{"model": 1, "replica": 3, "name": "m", "task": "chat", "fingerprint": "f", "launcher": "vllm", "slots": None},
    **{
        "port": 18100,
        "url": "http://[::1]:18100",
        "api_key": "k",
        "allotment": json.loads(json.dumps(GRANTED.stored())),
    },
    **{"rank": 1, "hosts": ("gpu-1", "gpu-2"), "gang": "g"},
)
CARD = Device(index=0, uuid="GPU-0", name="NVIDIA 1", kind="gpu", total=2**40, used=1, free=1)
STRANGER = Stranger(pid=7, name="python", device=0, bytes=None)
INSPECTION = Inspection(
    devices=[CARD],
    strangers=[STRANGER],
    engines={"vllm": "1.2"},
    installed={"vllm": ["1.2"]},
    stamps={"vllm": {"1.2": "7 8"}},
    default_versions={"vllm": "1.2"},
    problems=[{"code": "disk-full", "detail": "/"}],
    disks=[{"path": "/", "total": 2**40, "free": 1}],
)
VALUES = [
    LaunchOrder(
        run_id="r",
        key=ReplicaKey(3, 1),
        spec=SPEC,
        engine=ENGINE,
        address="::1",
        grace=3.0,
        granted=GRANTED,
        isolation=CallerIsolation(media_domains=("a.example",), shared_cache=True),
    ),
    HostedRun(run_id="r", label=LABEL, pid=7, of_this_boot=True, life=Life.ENDING),
    HostedRun(run_id="r", label=LABEL, pid=7, of_this_boot=False, life=Life.LOST, sleep_record=RECORD),
    RunEnd(exit=ExitStatus(code=0, signal=9, asked=False), log="最後\n", oom_kills=2),
    RunEnd(exit=None, log="", oom_kills=0),
    PlacedReplica(name="m #0", allocation=GRANTED, run_id="", settled=False),
    HostSnapshot(lives={"a": Life.RUNNING, "b": Life.ENDED}, oom_kills=3),
    AddressFault(code="address-slow", address="h", reason="2"),
    Space(needs={0: 5, -1: 7}),
    Trial(launcher="vllm", version="1", stamp="s", state="proven", answer={"best": 1}),
    INSPECTION,
    FilesRead(model=1, seen="s", facts=FileFacts(facts=ModelMetadata(architecture="a", layers=2), fault="")),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_arrive_as_they_were(value):
    message = wire.read_message(wire.write_message({"value": value}))
    assert wire.decode(type(value), message["value"]) == value


ROOM = Room(device=0, name="NVIDIA 1", total=10, ours=(("m #0", 3),), strangers=1, free=6)


@pytest.mark.parametrize(
    "error",
    [
        NoRoom(NEED, [ROOM], fits=512, sequences=2, in_ram=True),
        NoSuchDevice([3], 2, 1),
        Unpredictable(("head_dim",)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_why_there_is_no_room_arrives_whole(error):
    found = FitResult(launcher="vllm", need=NEED, spaces=(Space(needs={0: 1}),), refusal=error, to_go=("m #0",))
    arrived = wire.decode(FitResult, json.loads(wire.write_message(found)))
    assert vars(arrived.refusal) == vars(error)
    assert replace(arrived, refusal=None) == replace(found, refusal=None)


def test_other_refusals_arrive_whole():
    refusals = [
        LaunchRefusal(unreadable=UnreadableModel("cut-off", path="/m", actual=1, expected=2), path_exists=True),
        LaunchRefusal(no_version=NoVersion("vllm", "1", ["2", "3"])),
        LaunchRefusal(bad_argument=ArgumentFault(code="unknown", arg="--x", more=("--y",))),
        LaunchRefusal(no_port=(18100, 18999)),
    ]
    for refusal in refusals:
        arrived = wire.decode(LaunchRefusal, json.loads(wire.write_message(refusal)))
        assert str(arrived.unreadable) == str(refusal.unreadable)
        assert _parts(arrived.no_version) == _parts(refusal.no_version)
        assert (arrived.bad_argument, arrived.no_port) == (refusal.bad_argument, refusal.no_port)


def _parts(error: Exception | None) -> dict[str, object]:
    return vars(error) if error else {}


def test_fields_of_another_release_do_not_matter():
    data = wire.encode(INSTALLED) | {"later": 1}
    assert wire.decode(Installed, data) == INSTALLED
    trial = wire.encode(Trial(launcher="a", version="1", stamp="", state="failed", cause="x"))
    del trial["cause"]
    assert wire.decode(Trial, trial).cause == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.sampled_from([LaunchOrder, HostedRun, RunEnd, HostSnapshot, FitResult, LaunchRefusal]))
def test_whatever_is_sent_is_a_value_of_its_type_or_a_fault(data, kind):
    try:
        found = wire.decode(kind, data)
    except WireFault:
        return
    assert isinstance(found, kind)


@given(st.data())
def test_a_value_with_one_wrong_part_is_refused(data):
    whole = wire.encode(VALUES[0])
    name = data.draw(st.sampled_from(["run_id", "key", "spec", "engine", "address", "granted", "isolation"]))
    wrong = data.draw(st.sampled_from([1.5, [[]], {"x": 1}]))
    with pytest.raises(WireFault):
        wire.decode(LaunchOrder, whole | {name: wrong} if name != "isolation" or wrong != {"x": 1} else 7)


def nested(depth: int) -> object:
    return {"x": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    ("whole", "wrong"),
    [
        (INSPECTION, {"devices": [wire.encode(CARD)] * (MOST_DEVICES + 1)}),
        (INSPECTION, {"devices": [wire.encode(CARD) | {"name": "x" * 10_000}]}),
        (INSPECTION, {"devices": [wire.encode(CARD) | {"index": "0"}]}),
        (INSPECTION, {"devices": [wire.encode(CARD) | {"total": 2**70}]}),
        (INSPECTION, {"devices": [wire.encode(CARD) | {"processes": [{"pid": 1, "bytes": 1}] * 10_000}]}),
        (INSPECTION, {"strangers": [wire.encode(STRANGER)] * (MOST_STRANGERS + 1)}),
        (INSPECTION, {"strangers": [{"pid": 1}]}),
        (INSPECTION, {"engines": dict.fromkeys(map(str, range(10_000)), "1")}),
        (INSPECTION, {"engines": {"vllm": "1" * 10_000}}),
        (INSPECTION, {"engines": {"x" * 10_000: "1"}}),
        (INSPECTION, {"installed": {"vllm": ["1"] * 10_000}}),
        (INSPECTION, {"problems": [{"code": "x", "detail": "y" * 10_000}]}),
        (INSPECTION, {"disks": [{"path": "/", "total": [1]}]}),
        (INSPECTION, {"problems": [{"detail": "x"}]}),
        (LABEL, {"replica": "zero"}),
        (LABEL, {"replica": -1}),
        (LABEL, {"model": 2**70}),
        (LABEL, {"rank": 7}),
        (LABEL, {"rank": -1}),
        (LABEL, {"hosts": ["h"] * 10_000}),
        (LABEL, {"hosts": [1]}),
        (LABEL, {"url": None}),
        (LABEL, {"allotment": nested(20)}),
        (LABEL, {"allotment": {"x": [0] * 10_000}}),
        (RECORD, {"answer": nested(20)}),
        (RECORD, {"ram": 10**400}),
        (GRANTED, {"fraction": 10**400}),
        (RunEnd(exit=None, log="", oom_kills=0), {"log": "x" * 1_000_001}),
        (HostSnapshot(lives={}, oom_kills=0), {"lives": dict.fromkeys(map(str, range(10_001)), "RUNNING")}),
        (FileFacts(facts=None, fault=""), {"facts": {"architecture": "a", "layers": "many"}}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else type(value).__name__,
)
def test_what_breaks_a_bound_or_a_type_is_refused_in_few_words(whole, wrong):
    with pytest.raises(WireFault) as refusal:
        wire.decode(type(whole), wire.encode(whole) | wrong)
    assert any(word in str(refusal.value) for word in (next(iter(wrong)), "impossible", "a problem"))
    assert len(str(refusal.value)) < 300


ANSWERS = {
    **{name: answer for methods in (METHODS, FILE_METHODS) for name, (_, answer) in methods.items()},
    "a refusal": LaunchRefusal,
    "an agent": AgentDescription,
}


def find_unbounded(kind: Any, where: str, *, bounded: bool = False) -> Iterator[str]:
    """Yield the texts, lists and mappings of a type of answers that may be as long as a message."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from find_unbounded(parts[0], where, bounded=any(isinstance(note, AtMost) for note in parts[1:]))
    elif hints := _parts_of(kind):
        for name, hint in hints.items():
            yield from find_unbounded(hint, f"{where}.{name}")
    elif kind is str or _is_collection(origin, parts):
        yield from [] if bounded else [where]
        for part in parts[1:] if issubclass(origin or str, Mapping) else parts:  # keys are bounded by themselves
            yield from find_unbounded(part, where)
    elif origin is not Literal:
        for part in parts:
            yield from find_unbounded(part, where)


def _parts_of(kind: Any) -> dict[str, Any]:
    """Return the fields of a type that has some, or what an exception is made of."""
    if isinstance(kind, type) and (found := wire.EXCEPTIONS.get(kind)):
        return dict(found)
    is_tuple = isinstance(kind, type) and issubclass(kind, tuple)
    has_fields = is_dataclass(kind) or is_tuple
    return get_type_hints(kind, include_extras=True) if has_fields and not issubclass(kind, Enum) else {}


def _is_collection(origin: Any, parts: tuple[Any, ...]) -> bool:
    """Return whether it can have any number of entries, which a tuple of one of each cannot."""
    usual = origin not in (None, Literal, types.UnionType) and isinstance(origin, type)
    return usual and (not issubclass(origin, tuple) or parts[-1] is Ellipsis)


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_a_host_answers_has_a_bound_of_its_own(name):
    assert list(find_unbounded(ANSWERS[name], name)) == []


def test_what_has_no_bound_is_found():
    unbounded = list[tuple[str, int]] | dict[str, Annotated[list[str], AtMost(1)]] | Mapping[int, str] | None
    assert list(find_unbounded(unbounded, "x")) == ["x"] * 6


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (NoSuchDevice([3], 2, 1), {"missing": [7] * 10_000}),
        (Unpredictable(("head_dim",)), {"missing": ["x"] * 10_000}),
        (Unpredictable(("head_dim",)), {"missing": ["x" * 10_000]}),
        (NoVersion("vllm", "1", ["2"]), {"launcher": "x" * 10_000}),
        (NoVersion("vllm", "1", ["2"]), {"wanted": "x" * 10_000}),
        (NoVersion("vllm", "1", ["2"]), {"installed": ["x"] * 10_000}),
        (NoRoom(NEED, [ROOM]), {"rooms": [wire.encode(ROOM) | {"name": "x" * 10_000}]}),
        (UnreadableModel("missing", path="/m"), {"values": {"path": "x" * 10_000}}),
        (UnreadableModel("missing", path="/m"), {"values": dict.fromkeys(map(str, range(100)), 1)}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else type(value).__name__,
)
def test_a_refusal_that_would_fill_a_page_is_none(error, wrong):
    with pytest.raises(WireFault, match=next(iter(wrong))):
        wire.decode(type(error), wire.encode(error) | wrong)


def test_an_allotment_of_another_release_is_none():
    assert LABEL.allocation == GRANTED
    assert replace(LABEL, allotment={"devices": "x"}).allocation is None


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{", b'"' + b"[" * 100_000, b"[" * 100_000])
def test_what_is_no_message_is_a_fault(data):
    with pytest.raises(WireFault):
        wire.read_message(data)


def test_other_objects_are_not_sent():
    with pytest.raises(WireFault):
        wire.write_message({"value": object()})
    with pytest.raises(WireFault):
        wire.write_message({"value": OSError("disk")})
