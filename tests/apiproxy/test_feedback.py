"""`POST /v1/feedback` through a real gateway: who may say what about which request, and what happens otherwise."""

import re

import httpx2
import pytest

from apiproxy.dataplane import feedback
from portal.feedback.models import Feedback
from portal.usage.models import UsageRecord
from tests.waiting import until


def send(counter, body, **more) -> httpx2.Response:
    headers = {"authorization": f"Bearer {counter.key}"}
    if isinstance(body, bytes):
        return httpx2.post(f"{counter.url}/v1/feedback", content=body, headers={**headers, **more})
    return httpx2.post(f"{counter.url}/v1/feedback", json=body, headers={**headers, **more})


@pytest.fixture
def called(counter) -> str:
    """Return the id of a request that was answered and recorded."""
    answer = counter.chat()
    request_id = answer.headers["x-request-id"]
    until(lambda: UsageRecord.objects.filter(request_id=request_id).exists())
    return request_id


def test_a_caller_judges_its_own_request_and_changes_its_mind(counter, called):
    answer = send(counter, {"request_id": called, "score": 1})
    assert answer.status_code == 200
    assert answer.json() == {"object": "feedback", "request_id": called, "score": 1, "status": "recorded"}
    send(counter, {"request_id": called, "score": -1, "comment": "途中で終わった"})
    row = Feedback.objects.get()
    assert (row.score, row.comment, row.request_id) == (-1, "途中で終わった", called)


def test_feedback_that_is_ahead_of_its_usage_is_taken(counter):
    answer = send(counter, {"request_id": "req_000000000000000000000000", "score": 1})
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")


def test_a_request_of_another_is_not_there(counter, called):
    UsageRecord.objects.update(user_id=None)
    answer = send(counter, {"request_id": called, "score": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "request_not_found")
    assert not Feedback.objects.exists()


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"score": 1}, 400, "request_id"),
        ({"request_id": "r", "score": 0}, 400, "score"),
        ({"request_id": "r", "score": True}, 400, "score"),
        ({"request_id": "r", "score": 1.5}, 400, "score"),
        ({"request_id": "x" * 41, "score": 1}, 400, "request_id"),
        ({"request_id": 7, "score": 1}, 400, "request_id"),
        ({"request_id": "r", "score": 1, "comment": "x" * 1001}, 400, "comment"),
        ({"request_id": "r", "score": 1, "comment": "\0"}, 400, "comment"),
        ({"request_id": "r", "score": 1, "prompt": "x"}, 400, "prompt"),
        ({"request_id": "r", "score": 1, "use_case": -1}, 400, "use_case"),
        ([], 400, None),
        (b"{", 400, None),
        (b"\xff\xfe", 400, None),
        (b" " * (feedback.MAX_BODY + 1), 413, None),
    ],
)
def test_what_cannot_be_feedback_is_refused_in_openais_form(counter, body, status, param):
    answer = send(counter, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (status, "invalid_request_error", param)
    assert not Feedback.objects.exists()


def test_a_line_break_of_the_comment_counts_one(counter, called):
    lines = "x\n" * (feedback.MAX_COMMENT // 2 - 1) + "x"
    body = {"request_id": called, "score": 1, "comment": lines.replace("\n", "\r\n")}
    assert send(counter, body).status_code in (200, 202)
    assert Feedback.objects.get().comment == lines


def test_a_fault_is_described_by_what_it_is(counter):
    broken, nul, number = (
        send(counter, body).json()["error"]["message"]
        for body in (b"{bad", *({"request_id": "r", "score": 1, "comment": comment} for comment in ("\0", 7)))
    )
    assert re.findall(r"\d+", broken) == ["1", "2"]  # the line and the column
    assert nul != number
    assert "U+0000" in nul


def test_other_methods_and_keys_are_refused(counter):
    assert httpx2.post(f"{counter.url}/v1/feedback", json={}).status_code == 401
    headers = {"authorization": f"Bearer {counter.key}"}
    answer = httpx2.get(f"{counter.url}/v1/feedback", headers=headers)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, OPTIONS")


def test_a_key_that_sends_too_much_is_told_when_to_come_back(counter, monkeypatch):
    monkeypatch.setattr(feedback, "PER_MINUTE", 2)
    answers = [send(counter, {"request_id": f"r{number}", "score": 1}) for number in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert answers[-1].headers["retry-after"] == "60"
    assert Feedback.objects.count() == 2
