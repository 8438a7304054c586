"""The text of an API key: made, checked and digested. No database, no Django.

`mdg_` + 32 characters of randomness + 6 of checksum, all base 62. 32 characters hold 190 bits. The checksum
(CRC-32 of what stands before it, as in GitHub's tokens) lets a gateway refuse a mistyped or invented key without
any look-up, and lets secret scanners tell a real key from something alike.
"""

import hmac
import secrets
import string
import zlib

ALPHABET = string.digits + string.ascii_letters
PREFIX = "mdg_"
RANDOM = 32
CHECK = 6  # 62**6 > 2**32
LENGTH = len(PREFIX) + RANDOM + CHECK
PREFIX_LENGTH = 12  # characters by which pages and commands name a key: the lead and 8 random ones (47 bits)


def checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    digits = ""
    for _ in range(CHECK):
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    return digits


def make_secret(lead: str = PREFIX) -> str:
    """Return a new key. Management keys have another `lead` of the same length."""
    body = lead + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM))
    return body + checksum(body)


def well_formed(key: str, lead: str = PREFIX) -> bool:
    """Return whether this could be a key of ours: length, lead and checksum are right."""
    return (
        len(key) == LENGTH
        and key.startswith(lead)
        and key.isascii()
        and hmac.compare_digest(checksum(key[:-CHECK]), key[-CHECK:])
    )


def digest_of(key: str, secret: str) -> str:
    """HMAC-SHA256 in hex: what is stored and looked up. Keys are random, so no slow hash is needed."""
    return hmac.digest(secret.encode(), key.encode(), "sha256").hex()
