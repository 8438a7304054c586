"""The person behind an Open WebUI: the one that it names with a call. No I/O.

Open WebUI does so where its administrator sets ENABLE_FORWARD_USER_INFO_HEADERS: in headers of their own, or, with
FORWARD_USER_INFO_HEADER_JWT_SECRET (0.7 and newer), as the claims of a token. The signature of that token is not
checked, and need not be: only calls with a key that allows it are read, and the holder of the key could as well send
the member `user`. The name is used for counting, and gives no rights.
"""

import base64
import binascii

import orjson

from apiproxy.dataplane.formats.requests import clean_end_user

EMAIL_HEADER = b"x-openwebui-user-email"
ID_HEADER = b"x-openwebui-user-id"
TOKEN_HEADER = b"x-openwebui-user-jwt"
# Bytes of a token that are decoded. Five claims about a person are 400.
MAX_TOKEN = 4096


def find_person(headers: dict[bytes, bytes]) -> str:
    """Return the mail address of the person who is named, else the id; "" if no person is named.

    As `clean_end_user` keeps it.
    """
    token = headers.get(TOKEN_HEADER)
    claims = _decode_claims(token) if token else {}
    for named in (
        claims.get("email"),
        claims.get("sub"),
        _header_text(headers, EMAIL_HEADER),
        _header_text(headers, ID_HEADER),
    ):
        if found := clean_end_user(named):
            return found
    return ""


def _header_text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode(errors="replace").strip()


def _decode_claims(token: bytes) -> dict[str, object]:
    """Return the claims of a JSON Web Token (RFC 7519); none if it is not one."""
    pieces = token.split(b".", 3)
    if len(token) > MAX_TOKEN or len(pieces) != 3:
        return {}
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(pieces[1] + b"=="))
    except (binascii.Error, orjson.JSONDecodeError):
        return {}
    return claims if isinstance(claims, dict) else {}
