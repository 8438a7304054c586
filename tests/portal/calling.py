"""A caller of the API, from a browser's session or with a management key."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from jsonschema import Draft202012Validator

from portal.accounts.models import User


class Caller:
    """Every answer is held against the description. `key`: the text of a management key; else a session is used."""

    def __init__(self, user: User | None, described: dict[str, Any], *, key: str = "") -> None:
        self.client = Client(headers={"authorization": f"Bearer {key}"} if key else None)
        if user and not key:
            self.client.force_login(user, "portal.accounts.backends.LocalBackend")
        self._described = described

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        answer = self.client.generic(
            method,
            f"/api/v1/{path}",
            b"" if body is None else json.dumps(body).encode(),
            content_type="application/json",
            headers=headers,
        )
        self._hold(method, path, answer)
        return answer

    def get(self, path: str) -> Any:
        answer = self("GET", path)
        assert answer.status_code == 200, answer.content
        return answer.json()

    def _hold(self, method: str, path: str, answer: Any) -> None:
        """Check that the answer has the form that the description has for this path, method and status."""
        told_path = self._described_path(f"/api/v1/{path.partition('?')[0]}")
        operation = self._described["paths"].get(told_path, {}).get(method.lower())
        if operation is None or answer.status_code == 405:
            return
        told = operation["responses"][str(answer.status_code)]
        if answer.status_code != 204:
            media_type = answer["content-type"].partition(";")[0]
            content = told["content"][media_type]
            schema = {**content["schema"], "components": self._described["components"]}
            Draft202012Validator(schema).validate(answer.json())

    def _described_path(self, path: str) -> str:
        """Return the template that this path fills in; of two the one with more words of its own."""
        fitting = [
            told
            for told in self._described["paths"]
            if re.fullmatch(re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(told)), path)
        ]
        return min(fitting, key=lambda told: told.count("{"), default="")


@pytest.fixture
def call(described: dict[str, Any]) -> Callable[[User], Caller]:
    """Provide a caller of the API in a person's session."""
    return lambda user: Caller(user, described)


@pytest.fixture(scope="session")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the description as `manage.py spectacular` writes it, which fails on what it cannot describe."""
    file = tmp_path_factory.mktemp("api") / "schema.json"
    call_command("spectacular", "--validate", "--fail-on-warn", "--format", "openapi-json", "--file", str(file))
    return nullable(json.loads(file.read_text()))


def nullable(node: Any) -> Any:
    """Return OpenAPI 3.0 as JSON Schema, whose types say themselves that a value may be null."""
    if isinstance(node, list):
        return [nullable(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {name: nullable(value) for name, value in node.items()}
    if made.pop("nullable", False):
        return {"anyOf": [made, {"type": "null"}]}
    return made
