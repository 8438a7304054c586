"""The text of a key: make, check and digest it; and fingerprints of what digests it. No database, no Django.

`mdg_` (`mdm_` for a management key) + 32 characters of randomness + 6 of checksum, all base 62. 32 characters hold 190
bits. The checksum (CRC-32 of what precedes it, as in GitHub's tokens) lets a gateway refuse a mistyped or invented key
without any look-up, and lets secret scanners distinguish a real key from similar text.
"""

import hmac
import re
import secrets
import string
import zlib

ALPHABET = string.digits + string.ascii_letters
PREFIX = "mdg_"
MANAGEMENT_PREFIX = "mdm_"
RANDOM = 32
CHECK = 6  # 62**6 > 2**32
LENGTH = len(PREFIX) + RANDOM + CHECK
FINGERPRINT = 16  # hexadecimal digits
PREFIX_LENGTH = 12  # characters by which pages and commands name a key: mdg_ and 8 random ones (47 bits)


def checksum(text: str) -> str:
    """Return the checksum of the first part of a key."""
    number = zlib.crc32(text.encode())
    digits = ""
    for _ in range(CHECK):
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    return digits


def make_secret(prefix: str = PREFIX) -> str:
    """Return the text of a new key."""
    body = prefix + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM))
    return body + checksum(body)


def is_well_formed(key: str, prefix: str = PREFIX) -> bool:
    """Return whether this could be a key of ours: length, prefix and checksum are right."""
    return (
        len(key) == LENGTH
        and key.startswith(prefix)
        and key.isascii()
        and hmac.compare_digest(checksum(key[:-CHECK]), key[-CHECK:])
    )


def find_secrets(text: str, prefix: str) -> set[str]:
    """Return what could be keys of ours in `text`."""
    candidates = re.findall(rf"{prefix}[0-9A-Za-z]{{{RANDOM + CHECK}}}", text)
    return {candidate for candidate in candidates if is_well_formed(candidate, prefix)}


def digest_of(key: str, secret: str) -> str:
    """Return the HMAC-SHA256 in hex, which is stored and looked up. Keys are random, so no slow hash is needed."""
    return hmac.digest(secret.encode(), key.encode(), "sha256").hex()


def fingerprint_of(secret: str) -> str:
    """Return what names a secret without a way back to it: the first 64 bits of an HMAC-SHA256 under it."""
    return hmac.digest(secret.encode(), b"madoguchi fingerprint", "sha256").hex()[:FINGERPRINT]
