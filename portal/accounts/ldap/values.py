"""Values of attributes: python-ldap returns bytes, django-auth-ldap returns str for what happens to be UTF-8."""

import uuid
from collections.abc import Mapping
from typing import Any


def decode_text(value: Any) -> str:
    """Return the value as text; empty for bytes that are not UTF-8."""
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        return ""


def first_text(attributes: Mapping[str, Any], name: str) -> str:
    return decode_text((attributes.get(name) or [""])[0])


def first_bytes(attributes: Mapping[str, Any], name: str) -> bytes:
    value = (attributes.get(name) or [b""])[0]
    return value.encode() if isinstance(value, str) else bytes(value)


def format_guid(attributes: Mapping[str, Any], name: str = "objectGUID") -> str:
    """Return the 16 bytes of an objectGUID as Windows' own tools print them; empty for anything else."""
    value = first_bytes(attributes, name)
    return str(uuid.UUID(bytes_le=value)) if len(value) == 16 else ""


def escape_guid(guid: str) -> str:
    """Return the GUID escaped for use in a filter."""
    return "".join(f"\\{byte:02x}" for byte in uuid.UUID(guid).bytes_le)
