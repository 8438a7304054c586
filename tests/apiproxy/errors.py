"""Errors as clients of the gateway read them."""

from typing import Any

import httpx2

ERROR_KEYS = {"message", "type", "param", "code"}


def error(response: httpx2.Response) -> dict[str, Any]:
    found = response.json()["error"]
    assert set(found) == ERROR_KEYS
    assert response.headers["x-request-id"].startswith("req_")
    return found


def code(response: httpx2.Response) -> str:
    return response.json()["error"]["code"]
