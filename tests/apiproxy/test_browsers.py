"""Pages of other origins, and clients that write paths, methods and texts a little differently."""

import environs
import httpx2
import pytest

from apiproxy.dataplane.errors import MESSAGES
from portal.environment import check_origins
from tests import base_urls
from tests.apiproxy.conftest import HTTP
from tests.engine import ANSWER, DONE

PAGE = "https://chat.example.co.jp"
WANTED = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


@pytest.fixture(params=[HTTP, "httptools"])
def server_options(request, settings):
    settings.GATEWAY_CORS_ORIGINS = [PAGE]
    return {"http": request.param}


def ask(counter, method: str, path: str, **headers: str) -> httpx2.Response:
    """Send a request without a key."""
    return httpx2.request(
        method, counter.url + path, headers={name.replace("_", "-"): headers[name] for name in headers}
    )


def test_g12_a_browser_learns_without_a_key_what_pages_of_an_allowed_origin_may_request(counter):
    answer = ask(counter, "OPTIONS", "/v1/chat/completions", origin=PAGE, **WANTED)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-methods"] == "POST, OPTIONS"
    assert answer.headers["access-control-allow-headers"] == WANTED["access-control-request-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["vary"] == "origin"


def test_g12_pages_of_other_origins_are_allowed_nothing(counter):
    for page in ("https://evil.example", PAGE + ".evil.example", PAGE + ":444", "null"):
        for answer in (
            ask(counter, "OPTIONS", "/v1/chat/completions", origin=page, **WANTED),
            counter.client.get("/v1/models", headers={"origin": page}),
        ):
            assert answer.status_code == 200
            assert [name for name in answer.headers if name.startswith("access-control")] == []
            assert answer.headers["vary"] == "origin"


def test_g12_every_answer_to_an_allowed_page_can_be_read_there(counter):
    counter.client.headers["origin"] = PAGE
    with counter.stream() as stream:
        assert stream.read().decode().endswith(DONE)
    for answer in (
        stream,
        counter.chat(),
        counter.chat(model="none"),
        counter.client.get("/v1/models"),
        counter.client.get("/v1/nothing"),
        ask(counter, "GET", "/v1/models", origin=PAGE),
        ask(counter, "POST", "/chat/completions", origin=PAGE),
    ):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_g12_a_header_that_is_no_list_of_names_is_not_echoed(counter):
    odd = {**WANTED, "access-control-request-headers": "a;b"}
    assert "access-control-allow-headers" not in ask(counter, "OPTIONS", "/v1/models", origin=PAGE, **odd).headers


class TestWithoutOrigins:
    @pytest.fixture
    def server_options(self):
        return {}

    def test_g12_no_page_may_read_anything_unless_an_operator_allows_it(self, counter):
        answer = ask(counter, "OPTIONS", "/v1/chat/completions", origin=PAGE, **WANTED)
        assert (answer.status_code, answer.headers["allow"]) == (200, "POST, OPTIONS")
        assert [name for name in answer.headers if name.startswith("access-control")] == []
        assert "vary" not in counter.chat().headers

    def test_g12_a_slash_too_many_is_no_reason_to_refuse(self, counter):
        for path in ("/v1//models", "/v1/models/", "//v1/models", "/v1/models//fake", "/v1//models/fake/"):
            answer = counter.client.get(counter.url + path)
            assert answer.status_code == 200
            assert answer.json()["object"] == ("model" if "fake" in path else "list")
        for path in ("/v1/chat/completions/", "/v1//chat/completions"):
            assert counter.client.post(path, json={"model": "fake", "messages": []}).json() == ANSWER
        assert {row.endpoint for row in counter.usage(2)} == {"/v1/chat/completions"}

    def test_g12_a_wrong_base_url_is_explained_in_json(self, counter):
        for path, right in base_urls.WRONG.items():
            answer = counter.client.request("GET" if path.endswith("models") else "POST", path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
            assert answer.json()["error"]["message"] == MESSAGES["wrong_base_url"]["en"].format(path=path, right=right)
        named = counter.client.get("/v1/models/v1/embeddings")  # a model of this name
        assert (named.status_code, named.json()["error"]["code"]) == (404, "model_not_found")

    def test_g12_rerankers_are_found_where_coheres_clients_look_for_them(self, counter):
        counter.model.task = "rerank"
        counter.model.save()
        counter.wait_for_catalogue()
        body = {"model": "fake", "query": "q", "documents": ["a", "b"], "top_n": 1}
        for path in ("/rerank", "/v2/rerank"):
            assert counter.client.post(path, json=body).status_code == 200
        seen = counter.engine.seen()["requests"]
        assert [(one["path"], one["body"]) for one in seen] == [("/v1/rerank", body)] * 2
        assert {row.endpoint for row in counter.usage(2)} == {"/v1/rerank"}

    def test_g12_head_is_get_without_a_body(self, counter):
        found, whole = (counter.client.request(method, "/v1/models") for method in ("HEAD", "GET"))
        assert (found.status_code, found.content) == (200, b"")
        assert found.headers["content-length"] == str(len(whole.content))

    def test_g12_a_refused_method_names_the_right_ones(self, counter):
        for method, path, allow in (
            ("GET", "/v1/chat/completions", "POST, OPTIONS"),
            ("DELETE", "/v1/models", "GET, HEAD, OPTIONS"),
            ("PUT", "/v1/models/fake", "GET, HEAD, OPTIONS"),
        ):
            answer = counter.client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allow)

    def test_g12_a_caller_without_a_key_learns_how_to_send_one(self, counter):
        for headers in ({}, {"authorization": "Bearer mdg_wrong"}):
            answer = ask(counter, "GET", "/v1/models", **headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="madoguchi"')

    def test_g12_anthropics_clients_find_the_request_id_under_their_name(self, counter):
        body = {"model": "none", "messages": [], "max_tokens": 5}
        answer = counter.client.post("/v1/messages", json=body)
        assert answer.status_code == 404
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        assert "request-id" not in counter.chat().headers

    def test_g12_a_body_in_another_encoding_is_refused_by_its_name(self, counter):
        text = '{"model": "fake", "messages": [{"role": "user", "content": "会議の要約をお願いします"}]}'
        for encoding, name in (("cp932", "Shift_JIS"), ("euc_jp", "EUC-JP"), ("utf-16", "UTF-16")):
            answer = counter.client.post("/v1/chat/completions", content=text.encode(encoding))
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
            assert name in answer.json()["error"]["message"]
        with_mark = counter.client.post("/v1/chat/completions", content=b"\xef\xbb\xbf" + text.encode())
        assert with_mark.status_code == 200


@pytest.mark.parametrize("origin", ["https://x.example/", "x.example", "https://X.example", "https://*.example", ""])
def test_g12_what_no_browser_sends_as_an_origin_is_no_setting(origin):
    with pytest.raises(environs.ValidationError):
        check_origins([origin])


@pytest.mark.parametrize("origin", ["*", PAGE, "http://localhost:3000", "http://[::1]:80", "chrome-extension://abcdef"])
def test_g12_origins_as_browsers_write_them_are_settings(origin):
    check_origins([origin])
