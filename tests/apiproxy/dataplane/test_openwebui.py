"""The person named by Open WebUI with a call, and that calls are counted by person where the key allows it."""

import base64
import json

import pytest

from apiproxy.dataplane.openwebui import MAX_TOKEN, find_person

EMAIL, ID, TOKEN = "X-OpenWebUI-User-Email", "X-OpenWebUI-User-Id", "X-OpenWebUI-User-Jwt"


def token(claims: object) -> str:
    """Return a token as `jwt.encode` makes one; its secret is not known here."""
    header, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    return f"{header}.{payload}.c2lnbmVk"


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ({}, ""),
        ({EMAIL: "yamada@example.com", ID: "6f0c"}, "yamada@example.com"),
        ({EMAIL: " ", ID: "6f0c"}, "6f0c"),
        ({EMAIL: "山田@example.com"}, "山田@example.com"),
        ({EMAIL: "x" * 100}, "x" * 64),
        ({TOKEN: token({"email": "yamada@example.com", "sub": "6f0c"})}, "yamada@example.com"),
        ({TOKEN: token({"sub": "6f0c"}), EMAIL: "suzuki@example.com"}, "6f0c"),
        ({TOKEN: token({"email": ["yamada"], "sub": 7}), EMAIL: "suzuki@example.com"}, "suzuki@example.com"),
        ({TOKEN: token({"email": "a\0b"})}, "ab"),
    ],
)
def test_p6_the_person_behind_open_webui(sent, named):
    assert find_person({name.lower().encode(): value.encode() for name, value in sent.items()}) == named


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "a.b", "..", "a.b.c.d", "a.é.c", "a.!!.c", "a.AAAAA.c", token([]), token("yamada"), token(None)),
        token({"email": "x" * MAX_TOKEN}),
        token("[" * 2000),
    ],
)
def test_p6_what_is_no_token_names_no_person(text):
    assert find_person({TOKEN.lower().encode(): text.encode()}) == ""


def test_p6_calls_are_counted_by_the_person_that_open_webui_names_where_the_key_allows_it(counter):
    def call_as(**headers: str) -> None:
        counter.client.headers = {"authorization": f"Bearer {counter.key}", **headers}
        assert counter.chat(user="of-the-body").status_code == 200

    named = {EMAIL: "yamada@example.com", ID: "6f0c"}
    call_as(**named)
    counter.key_row.takes_user_headers = True
    counter.key_row.save()
    counter.wait_for_catalogue()
    call_as(**named)
    call_as(**{TOKEN: token({"email": "suzuki@example.com"})})
    call_as()
    users = [row.end_user for row in counter.usage(4)]
    assert sorted(users) == ["of-the-body", "of-the-body", "suzuki@example.com", "yamada@example.com"]
