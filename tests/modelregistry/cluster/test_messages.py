"""What goes between a controller, its driver and agents: whatever an agent answers, nothing but our JSON is read."""

import json
import pickle

import pytest

from modelregistry.cluster import limits, messages
from modelregistry.cluster.messages import UNREADABLE, TooLong, encode_answer, encode_line, read_answer

SHOWN = {"shown": ["boot", 1.5]}


def test_an_answer_is_read_as_it_was_written():
    for found in (
        {"result": {"a": "ホスト\ud800"}},
        {"result": None},
        {"fault": "no", "kind": "NotRenewed", "term": 3},
    ):
        assert read_answer(messages.encode(found | SHOWN)) == found | SHOWN


@pytest.mark.parametrize(
    "answer",
    [
        *(None, "text", {"result": 1}, b"", b"[]", b"{}", b"\xff", pickle.dumps({"result": 1})),
        *(json.dumps(each).encode() for each in ({"result": 1}, {"result": 1, "shown": [1, 2]}, {"fault": 1} | SHOWN)),
        json.dumps({"fault": "no", "kind": "x", "term": "1"} | SHOWN).encode(),
    ],
)
def test_what_is_no_answer_is_a_fault_of_the_host(answer):
    assert read_answer(answer)["kind"] == UNREADABLE


def test_messages_are_bounded_both_ways(monkeypatch):
    monkeypatch.setattr(limits, "LONGEST_LINE", 200)
    assert encode_line({"id": 1, "message": "x" * 100})
    with pytest.raises(TooLong):
        encode_line({"id": 1, "message": "x" * 200})
    assert read_answer(messages.encode({"result": "x" * 200} | SHOWN))["kind"] == UNREADABLE
    line = encode_answer({"id": 7, "result": "x" * 200})
    assert len(line) <= 200
    assert (json.loads(line)["id"], json.loads(line)["kind"]) == (7, "TooLong")
