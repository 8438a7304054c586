"""Engines fetch nothing that the operator has not allowed, and no tenant's cache shows another what it holds."""

import json
from dataclasses import replace

import pytest

from apiproxy.dataplane import media_urls
from apiproxy.dataplane.errors import BadRequest
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS, RequestPolicy
from apiproxy.dataplane.validation import GATEWAY_ONLY
from portal.keys.lifecycle import issue_key
from tests.apiproxy.served import SERVED

DATA = "data:image/png;base64,iVBORw0KGgo="
ELSEWHERE = [
    "http://169.254.169.254/latest/meta-data",
    "https://example.com/a.png",
    "HTTP://127.0.0.1:5432/",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    " http://127.0.0.1/",
    "http:/127.0.0.1",
    "//127.0.0.1/a",
    "gopher://127.0.0.1/",
    "/etc/passwd",
    "iVBORw0KGgo=",
    "",
    "http://files.example.com@127.0.0.1/",
    "http://files.example.com:x@127.0.0.1/",
    "http://files.example.com\\@127.0.0.1/",
    "http://files.example.com\t.evil.example/",
    "http://files.example.com.evil.example/",
    "http://evil.example/?files.example.com",
    "http://files.example.com%2eevil.example/",
    "http://files。example.com/",
    "http://files.example.com/\\..\\x",
]


def chat(*parts: dict) -> dict:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}]}


def places(url: object) -> dict[str, dict]:
    """Everywhere that vLLM 0.32 and llama.cpp read an address from."""
    return {
        "chat": chat({"type": "image_url", "image_url": {"url": url, "detail": "low"}}),
        "chat, as a text": chat({"type": "image_url", "image_url": url}),
        "chat, without a type": chat({"image_url": url}),
        "sound": chat({"type": "audio_url", "audio_url": {"url": url}}),
        "video": chat({"type": "video_url", "video_url": {"url": url}}),
        "a tool's answer": {
            "messages": [{"role": "tool", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        },
        "Responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
        "Responses, a file": {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": url}]}]},
        "Responses, a tool": {
            "input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": url}]}]
        },
        "Messages": chat({"type": "image", "source": {"type": "url", "url": url}}),
        "Messages, a tool": chat(
            {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}
        ),
        "score": {"text_2": {"content": [{"type": "image_url", "image_url": {"url": url}}]}},
        "rerank": {"documents": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]},
    }


def check(fields: dict, domains: frozenset[str] = frozenset()) -> None:
    media_urls.check(requests.parse(json.dumps({"model": "m", **fields}).encode()).media, domains)


@pytest.mark.parametrize("where", places(""))
@pytest.mark.parametrize("url", ELSEWHERE)
def test_g16_no_address_goes_to_an_engine(where, url):
    for domains in (frozenset(), frozenset({"files.example.com"})):
        with pytest.raises(BadRequest) as caught:
            check(places(url)[where], domains)
        assert caught.value.code == "invalid_value"
        assert caught.value.error("ja")["message"] != caught.value.error("en")["message"]


@pytest.mark.parametrize("where", places(""))
def test_g16_data_and_the_operators_domains_do(where):
    check(places(DATA)[where])
    check(places(DATA.upper())[where])
    for url in ("https://files.example.com/a.png?x=1#y", "http://FILES.example.com:8080", "https://files.example.com"):
        check(places(url)[where], frozenset({"files.example.com"}))


def test_g16_what_is_no_place_of_media_is_none_of_our_business():
    url = "http://127.0.0.1/"
    check({"messages": [{"role": "user", "content": f"see {url}", "name": url}], "metadata": {"url": url}})
    parameters = {"properties": {"image_url": {"const": url}, "source": {"url": url}}}
    check({"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]})
    cited = {"type": "url_citation", "url_citation": {"url": url}}
    check({"messages": [{"role": "assistant", "content": "", "annotations": [cited]}]})
    for odd in (None, 5, [], {}, {"url": None}, {"url": 5}):
        check(chat({"type": "image_url", "image_url": odd}))


def test_g16_a_picture_elsewhere_is_refused_before_an_engine_hears_of_it(counter):
    for fields in places("http://169.254.169.254/").values():
        answer = counter.client.post("/v1/chat/completions", json={"model": "fake", **fields})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert counter.engine.seen()["requests"] == []
    body = {"model": "fake", **places(DATA)["chat"]}
    assert counter.client.post("/v1/chat/completions", json=body).status_code == 200


# --- caches

LLAMA_CPP = replace(SERVED, stops_unary=False)
POLICY = RequestPolicy(salt_key=b"k" * 32)


def sent_members(
    model, tenant: int, path: str = "/v1/chat/completions", policy: RequestPolicy = POLICY, **fields
) -> dict:
    known = requests.parse(json.dumps({"model": "m", **fields}).encode())
    members = requests.cache_members(known, model, policy, tenant)
    body = requests.upstream_body(known, ENDPOINTS[path], "m", force_stream=False, extra=members)
    return {name: value for name, value in json.loads(body).items() if name in GATEWAY_ONLY}


def test_g18_each_tenant_has_a_salt_of_its_own_that_cannot_be_guessed():
    mine, others = sent_members(SERVED, 1), sent_members(SERVED, 2)
    assert mine.keys() == others.keys() == {"cache_salt"}
    assert mine == sent_members(SERVED, 1)
    assert (
        len({*mine.values(), *others.values(), *sent_members(SERVED, 1, policy=RequestPolicy(salt_key=b"x")).values()})
        == 3
    )
    assert all(len(salt) == 40 and salt.isalnum() for salt in mine.values())  # vLLM takes no / and no @


def test_g18_a_clients_own_salt_divides_its_tenants_cache_and_no_others():
    assert (
        len({sent_members(SERVED, tenant, cache_salt=own)["cache_salt"] for tenant in (1, 2) for own in ("", "a", "b")})
        == 6
    )
    theirs = sent_members(SERVED, 2)["cache_salt"]
    assert sent_members(SERVED, 1, cache_salt=theirs)["cache_salt"] != theirs
    for odd in (None, 5, [], "\ud83d"):
        assert len(sent_members(SERVED, 1, cache_salt=odd)["cache_salt"]) == 40


def test_g18_llama_cpp_has_a_cache_for_a_model_of_one_tenant_only():
    assert sent_members(LLAMA_CPP, 1, cache_prompt=True) == {"cache_prompt": False}
    assert sent_members(replace(LLAMA_CPP, tenants=frozenset({1, 2})), 1) == {"cache_prompt": False}
    assert sent_members(replace(LLAMA_CPP, tenants=frozenset({1})), 1) == {"cache_prompt": True}


def test_g18_an_operator_may_let_all_share_one_cache():
    for model in (SERVED, LLAMA_CPP):
        assert sent_members(model, 1, policy=RequestPolicy()) == {}
    assert sent_members(replace(SERVED, external=True), 1) == {}


def test_g18_two_tenants_have_different_salts_at_a_vllm(counter, charlie, sales):
    counter.model.engine, counter.model.path = "vllm", "/models/fake"
    counter.model.save()
    _, others = issue_key(tenant=sales, user=charlie, name="others")
    counter.wait_for_catalogue()
    body = {"model": "fake", "messages": []}
    for headers in ({}, {"authorization": f"Bearer {others}"}, {}):
        assert counter.client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    mine, theirs, again = (seen["body"]["cache_salt"] for seen in counter.engine.seen()["requests"])
    assert mine == again != theirs
