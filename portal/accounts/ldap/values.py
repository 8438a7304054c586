"""Values of attributes: python-ldap gives bytes, django-auth-ldap makes str of what happens to be UTF-8."""

import uuid
from collections.abc import Mapping
from typing import Any


def text(value: Any) -> str:
    """Empty for bytes that are no text."""
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        return ""


def first(attributes: Mapping[str, Any], name: str) -> str:
    return text((attributes.get(name) or [""])[0])


def first_bytes(attributes: Mapping[str, Any], name: str) -> bytes:
    value = (attributes.get(name) or [b""])[0]
    return value.encode() if isinstance(value, str) else bytes(value)


def guid_text(attributes: Mapping[str, Any], name: str = "objectGUID") -> str:
    """objectGUID is 16 bytes; it is kept as Windows' own tools print it. Empty for anything else."""
    value = first_bytes(attributes, name)
    return str(uuid.UUID(bytes_le=value)) if len(value) == 16 else ""


def guid_filter(guid: str) -> str:
    """As the value of a filter."""
    return "".join(f"\\{byte:02x}" for byte in uuid.UUID(guid).bytes_le)
