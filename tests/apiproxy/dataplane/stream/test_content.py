"""What was generated is found in the events of every API, whatever shape they change to."""

import json

import pytest

from apiproxy.dataplane.stream.content import LONGEST, ContentExtractor, read_answer, unescape


def chunk(text: str, *, member: str = "content", ascii_only: bool = False, **more) -> bytes:
    choice = {"index": 0, "delta": {member: text}, "finish_reason": None}
    data = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "choices": [choice], **more}
    return b"data: " + json.dumps(data, ensure_ascii=ascii_only).encode() + b"\n\n"


def completion(text: str) -> bytes:
    return b"data: " + json.dumps({"id": "c", "choices": [{"index": 0, "text": text}]}).encode() + b"\n\n"


def message(text: str, kind: str = "text_delta", member: str = "text") -> bytes:
    data = {"type": "content_block_delta", "index": 2, "delta": {"type": kind, member: text}}
    return b"event: content_block_delta\ndata: " + json.dumps(data).encode() + b"\n\n"


def response(number: int, text: str, kind: str = "response.output_text.delta") -> bytes:
    data = {"content_index": 0, "delta": text, "item_id": "i", "sequence_number": number, "type": kind}
    return b"event: %s\ndata: " % kind.encode() + json.dumps(data).encode() + b"\n\n"


def tool(text: str) -> bytes:
    choice = {"index": 0, "delta": {"tool_calls": [{"index": 1, "function": {"arguments": text}}]}}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def delta(**members) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": members}]}).encode() + b"\n\n"


def joined(pieces: list[bytes], batch: int = 3) -> bytes:
    extractor = ContentExtractor()
    found = [
        text for at in range(0, len(pieces), batch) for text in extractor.extract(b"".join(pieces[at : at + batch]))
    ]
    return unescape(b"".join(text for _, text in found))


WORDS = ["The ", "cat ", '"sat" ', "on\n", "猫が ", "\\n ", "😀", "", "content", "data: {", "}", "end"]


@pytest.mark.parametrize(
    "events",
    [
        [chunk(word) for word in WORDS],
        [chunk(word, ascii_only=True) for word in WORDS],
        [chunk(word, member="reasoning") for word in WORDS],
        [chunk(word, created=number // 4) for number, word in enumerate(WORDS)],
        [chunk(word, logprobs=[number]) for number, word in enumerate(WORDS)],
        [completion(word) for word in WORDS],
        [message(word) for word in WORDS],
        [message(word, "input_json_delta", "partial_json") for word in WORDS],
        [response(number, word) for number, word in enumerate(WORDS)],
        [tool(word) for word in WORDS],
        [chunk(word, member="refusal") for word in WORDS],
        [delta(function_call={"arguments": word}) for word in WORDS],
        [delta(content=[{"type": "text", "text": word}]) for word in WORDS],
        [delta(content=[None, {"type": "text", "text": word}, {"type": "image_url"}]) for word in WORDS],
        [delta(tool_calls=[None, {"function": None}, {"index": 0}], content=word) for word in WORDS],
        [delta(tool_calls=7, content=word) for word in WORDS],
    ],
    ids=[
        *("chat", "escaped", "thoughts", "clock", "logprobs", "completion", "message", "input", "responses", "tool"),
        *("refusal", "function", "part", "parts", "nothing", "nonsense"),
    ],
)
def test_the_text_of_a_stream_is_found_whole(events):
    whole = json.dumps("".join(WORDS), ensure_ascii=False).encode()[1:-1]
    for batch in (1, 3, len(events)):
        assert joined(events, batch) == joined([b"".join(events)], batch) == whole


def test_frames_may_change_their_shape_in_the_middle():
    events = [chunk("a"), chunk("b"), chunk("c", member="reasoning"), tool("d"), chunk("e"), b": ping\n\n", chunk("f")]
    assert joined(events, 1) == joined(events, 7) == b"abcdef"


def test_half_of_a_pair_and_what_is_no_event_are_taken():
    events = [
        b'data: {"choices": [{"delta": {"content": "a\\ud83d"}}]}\n\n',
        b"data: [DONE]\n\n",
        b"data: nonsense\n\n",
    ]
    assert joined(events).startswith(b"a")
    assert joined([b'data: {"choices": 7}\n\n', b'data: {"choices": [{"delta": 3}]}\n\n', b"data: []\n\n"]) == b""


def test_g15_megabytes_of_log_probabilities_are_not_decoded(monkeypatch):
    monkeypatch.setattr("apiproxy.dataplane.stream.content.read_event", lambda _: 1 / 0)
    assert joined([chunk("a", logprobs=["x" * LONGEST])]) == b""


@pytest.mark.parametrize("index", [int, str])
def test_several_answers_are_kept_apart(index):
    events = []
    for number in range(6):
        choice = {"index": index(number % 2), "delta": {"content": "ab"[number % 2]}}
        events.append(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
    found: dict[int, bytes] = {}
    for part, text in ContentExtractor().extract(b"".join(events)):
        found[part.choice] = found.get(part.choice, b"") + text
    assert found == {0: b"aaa", 1: b"bbb"}


def test_whole_answers_are_read_in_every_api():
    chat = {"choices": [{"index": 1, "message": {"content": "a", "reasoning": "b", "role": "assistant"}}]}
    assert sorted(text for _, text in read_answer(chat)) == ["a", "b"]
    assert [text for _, text in read_answer({"content": [{"type": "text", "text": "a"}]})] == ["a"]
    output = [{"type": "message", "content": [{"type": "output_text", "text": "a"}]}, {"arguments": "b"}]
    assert [text for _, text in read_answer({"output": output})] == ["a", "b"]
