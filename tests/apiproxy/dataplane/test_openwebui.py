"""The person named by Open WebUI with a call, and that calls are counted by person where the key allows it."""

import base64
import hmac
import json
import time

import pytest

from apiproxy.dataplane.openwebui import LEEWAY, MAX_TOKEN, NamedPerson, find_person, verify_person
from portal.keys import end_user_secret
from portal.keys.lifecycle import issue_key

EMAIL, ID, TOKEN = "X-OpenWebUI-User-Email", "X-OpenWebUI-User-Id", "X-OpenWebUI-User-Jwt"


def token(claims: object) -> str:
    """Return a token as `jwt.encode` makes one; its secret is not known here."""
    header, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    return f"{header}.{payload}.c2lnbmVk"


SECRET, NOW = b"a secret of this key", 1_000_000.0
YAMADA = {"sub": "6f0c", "email": "yamada@example.com", "iss": "open-webui", "iat": NOW - 1, "exp": NOW + 300}


def signed(claims: object, secret: bytes = SECRET, head: object = None) -> bytes:
    """Return a token as Open WebUI makes one with FORWARD_USER_INFO_HEADER_JWT_SECRET."""
    head = {"alg": "HS256", "typ": "JWT"} if head is None else head
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, claims)]
    signature = hmac.digest(secret, b".".join(parts), "sha256")
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")])


def verify(text: bytes) -> NamedPerson:
    return verify_person({TOKEN.lower().encode(): text}, (b"former", SECRET), NOW)


def test_a_person_whom_the_key_s_secret_signs_is_named():
    assert verify(signed(YAMADA)) == NamedPerson("yamada@example.com", "6f0c")
    assert verify(signed({"sub": "6f0c", "exp": NOW + 1})) == NamedPerson("6f0c", "6f0c")
    assert verify(signed({"email": "a@example.com", "exp": NOW + 1})) == NamedPerson("a@example.com", "a@example.com")
    assert verify_person({}, (b"former", SECRET), NOW) == NamedPerson()


def test_who_is_named_without_a_signature_is_not_believed():
    headers = {EMAIL.lower().encode(): b"yamada@example.com", ID.lower().encode(): b"6f0c"}
    assert verify_person(headers, (b"former", SECRET), NOW) == NamedPerson()


HEAD, CLAIMS, SIGNATURE = signed(YAMADA).split(b".")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (signed(YAMADA, b"another secret"), "signature"),
        (signed(YAMADA, b""), "signature"),
        (b".".join([HEAD, CLAIMS, b""]), "signature"),
        (b".".join([HEAD, CLAIMS, SIGNATURE[:-3]]), "signature"),
        (b".".join([HEAD, CLAIMS, b"\xff" * 40]), "signature"),
        (
            b".".join([HEAD, signed({**YAMADA, "sub": "another", "email": "b@c"}).split(b".")[1], SIGNATURE]),
            "signature",
        ),
        (signed(YAMADA, head={"alg": "none"}), "malformed"),
        (signed(YAMADA, head={"alg": "RS256"}), "malformed"),
        (signed(YAMADA, head=["HS256"]), "malformed"),
        (b".".join([HEAD, CLAIMS]), "malformed"),
        (b"x", "malformed"),
        (signed({**YAMADA, "name": "x" * MAX_TOKEN}), "malformed"),
        (signed({**YAMADA, "exp": NOW - LEEWAY - 1}), "expired"),
        (signed({**YAMADA, "iat": NOW + LEEWAY + 1}), "expired"),
        (signed({**YAMADA, "nbf": NOW + LEEWAY + 1}), "expired"),
        (signed({"email": "yamada@example.com"}), "expired"),  # it would hold for ever
        (signed({**YAMADA, "exp": True}), "expired"),
        (signed({**YAMADA, "exp": "never"}), "expired"),
    ],
)
def test_what_is_not_signed_or_not_valid_now_names_no_one(text, fault):
    assert verify(text) == NamedPerson("", "", fault)


@pytest.mark.parametrize("shift", [-LEEWAY / 2, LEEWAY / 2])
def test_clocks_may_differ_a_little(shift):
    token = signed({**YAMADA, "iat": NOW, "exp": NOW})
    assert verify_person({TOKEN.lower().encode(): token}, (b"former", SECRET), NOW + shift).name


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
    found = find_person({name.lower().encode(): value.encode() for name, value in sent.items()})
    assert found.name == named
    assert bool(found.id) == bool(named)


def test_p6_who_gets_another_mail_address_is_still_the_same_in_the_queue():
    for before, after in (
        ({TOKEN: token({"email": "a@x", "sub": "6f0c"})}, {TOKEN: token({"email": "b@x", "sub": "6f0c"})}),
        ({EMAIL: "a@x", ID: "6f0c"}, {EMAIL: "b@x", ID: "6f0c"}),
    ):
        first, second = (
            find_person({name.lower().encode(): value.encode() for name, value in sent.items()})
            for sent in (before, after)
        )
        assert (first.name, second.name) == ("a@x", "b@x")
        assert first.id == second.id == "6f0c"


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "a.b", "..", "a.b.c.d", "a.é.c", "a.!!.c", "a.AAAAA.c", token([]), token("yamada"), token(None)),
        token({"email": "x" * MAX_TOKEN}),
        token("[" * 2000),
    ],
)
def test_p6_what_is_no_token_names_no_person(text):
    assert find_person({TOKEN.lower().encode(): text.encode()}) == NamedPerson()


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


def test_of_a_key_with_a_secret_only_signed_people_are_counted_and_others_are_answered(counter, research):
    key, text = issue_key(tenant=research, service="Open WebUI", name="chat")
    secret = end_user_secret.make_user_secret(key).encode()
    counter.wait_for_catalogue()

    def call_with(**headers: bytes) -> None:
        counter.client.headers = {"authorization": f"Bearer {text}", **headers}
        assert counter.chat(user="of-the-body").status_code == 200

    claims = {"email": "yamada@example.com", "exp": time.time() + 300}
    call_with(**{TOKEN: signed(claims, secret)})
    call_with(**{TOKEN: signed(claims, b"another secret"), EMAIL: b"suzuki@example.com"})
    call_with(**{EMAIL: b"suzuki@example.com"})
    assert sorted(row.end_user for row in counter.usage(3)) == ["", "", "yamada@example.com"]
    counted = [line for line in counter.client.get("/metrics").text.splitlines() if "unverified_users_total{" in line]
    assert counted == ['madoguchi_unverified_users_total{reason="signature"} 1']
    end_user_secret.remove_user_secret(key)
    counter.wait_for_catalogue()
    call_with(**{EMAIL: b"suzuki@example.com"})
    assert counter.usage(4)[3].end_user == "suzuki@example.com"
