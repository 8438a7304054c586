"""The person behind an Open WebUI: the one that it names with a call. No I/O.

Open WebUI does so where its administrator sets ENABLE_FORWARD_USER_INFO_HEADERS: in headers of their own, or, with
FORWARD_USER_INFO_HEADER_JWT_SECRET (0.7 and newer), as the claims of a token that is signed by HS256 and valid for five
minutes (FORWARD_USER_INFO_HEADER_JWT_EXPIRES_SECONDS).

A key without a secret of its own believes whatever its calls say: the name is used for counting and, if operators allow
it, for the order of the queue, and gives no rights. Of a key with a secret only tokens are read that are signed with it
and have not expired; a call without one is no error, and is the key's own.
"""

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import orjson

from apiproxy.dataplane.formats.requests import clean_end_user

EMAIL_HEADER = b"x-openwebui-user-email"
ID_HEADER = b"x-openwebui-user-id"
TOKEN_HEADER = b"x-openwebui-user-jwt"
# Bytes of a token that are decoded. Five claims about a person are 400.
MAX_TOKEN = 4096
# Seconds by which the clocks of two machines may differ.
LEEWAY = 60.0

Fault = Literal["", "malformed", "signature", "expired"]


class NamedPerson(NamedTuple):
    """A person named by headers, as `clean_end_user` keeps texts. `fault`: why no one is although there is a token.

    `name`: what is shown and counted, the mail address if there is one. `id`: of Open WebUI, which stays the same when
    that changes; the name if there is none.
    """

    name: str = ""
    id: str = ""
    fault: Fault = ""


def find_person(headers: dict[bytes, bytes]) -> NamedPerson:
    """Return the person who is named, by a token before by other headers. Nothing is verified."""
    token = headers.get(TOKEN_HEADER)
    named = _named_by(_decode_claims(token) if token else {})
    if named.name:
        return named
    return _named_by({"email": _header_text(headers, EMAIL_HEADER), "sub": _header_text(headers, ID_HEADER)})


def _named_by(claims: Mapping[str, object]) -> NamedPerson:
    address, stable = clean_end_user(claims.get("email")), clean_end_user(claims.get("sub"))
    return NamedPerson(address or stable, stable or address)


def verify_person(headers: dict[bytes, bytes], secrets: Sequence[bytes], now: float) -> NamedPerson:
    """Return the person named by a token that is signed with one of these secrets and valid now (Unix seconds)."""
    token = headers.get(TOKEN_HEADER)
    if not token:
        return NamedPerson()
    head, claims = _decode(token, 0), _decode_claims(token)
    # Whatever else a token says of its algorithm ("none", a public key's) is not believed.
    if not claims or head.get("alg") != "HS256":
        return NamedPerson(fault="malformed")
    signed, _, signature = token.rpartition(b".")
    given = _decode_base64(signature) or b""
    if not any(hmac.compare_digest(given, hmac.digest(secret, signed, "sha256")) for secret in secrets):
        return NamedPerson(fault="signature")
    begins, ends = _seconds(claims.get("nbf", claims.get("iat", 0))), _seconds(claims.get("exp"))
    if begins is None or ends is None or not begins - LEEWAY <= now < ends + LEEWAY:
        return NamedPerson(fault="expired")
    return _named_by(claims)


def _header_text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode(errors="replace").strip()


def _decode_claims(token: bytes) -> dict[str, object]:
    """Return the claims of a JSON Web Token (RFC 7519); none if it is not one."""
    return _decode(token, 1)


def _decode(token: bytes, part: int) -> dict[str, object]:
    pieces = token.split(b".", 3)
    if len(token) > MAX_TOKEN or len(pieces) != 3:
        return {}
    text = _decode_base64(pieces[part])
    try:
        found = None if text is None else orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _decode_base64(text: bytes) -> bytes | None:
    try:
        return base64.urlsafe_b64decode(text + b"==")
    except binascii.Error:
        return None


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
