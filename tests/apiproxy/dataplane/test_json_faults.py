"""A body that is no JSON is refused in the words of the caller's language, with the place of the fault."""

import re

import pytest

from apiproxy.dataplane.errors import BadRequest
from apiproxy.dataplane.formats.requests import decode_json

FAULTS = [
    (b"{bad", ["1", "2"]),
    (b"", ["1", "1"]),
    (b'{"a" 1}', ["1", "6"]),
    (b'{"a": 1\n "b": 2}', ["2", "2"]),
    (b'{"a": 1} x', ["1", "10"]),
    (b'{"a": "x\ny"}', ["1", "9"]),
    (b'{"a": "\\q"}', ["1", "8"]),
    (b'{"a": "x', ["1", "7"]),
    (b'{"a": ' + b"9" * 5000 + b"}", []),
    (b"[" * 100_000, []),
]


def fault_of(body: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        decode_json(body)
    assert caught.value.code == "invalid_json"
    return caught.value


@pytest.mark.parametrize(("body", "place"), FAULTS)
def test_a_fault_is_named_in_japanese_with_its_place(body, place):
    message = fault_of(body).message("ja")
    assert re.findall(r"\d+", message) == place
    assert set(re.findall("[A-Za-z]+", message)) == {"JSON"}


@pytest.mark.parametrize(("body", "place"), FAULTS)
def test_in_english_it_has_the_same_place_and_no_japanese(body, place):
    message = fault_of(body).message("en")
    assert re.findall(r"\d+", message)[: len(place)] == place
    assert message.isascii()
    assert "sys." not in message


def test_each_fault_has_words_of_its_own():
    faults = [body for body, place in FAULTS if place]
    assert len({re.sub(r"\d+", "", fault_of(body).message("ja")) for body in faults}) == len(faults)
