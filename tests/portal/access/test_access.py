"""Who may call which address: the cast on every one of the site. An address without a rule here fails."""

import itertools
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from django.apps import apps
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import Client

from portal.usage.scopes import TENANT
from tests.portal.access_rules import CAST, RULES, WRITES, address_of
from tests.walk import addresses

pytestmark = pytest.mark.django_db

# A refusal (401, 403), or nothing that one may know of (404).
CLOSED = frozenset({401, 403, 404})
WRITING = ("POST", "PUT", "PATCH", "DELETE")


def test_every_address_has_a_rule_and_every_rule_an_address():
    """Django's admin is its own matter: it is for staff, see tests of its sign-in."""
    assert {path for path in addresses() if not path.startswith("admin/")} == set(RULES)
    assert {path for _method, path in WRITES} <= set(RULES)


@pytest.mark.parametrize("path", RULES)
def test_nobody_gets_more_than_is_theirs(clients, filled, path):
    rule = RULES[path]
    answers = {who: clients[who].generic(rule.method, address_of(path, filled)) for who in CAST}
    told = {who for who, response in answers.items() if not is_refusal(response)}
    assert told == rule.who, answers
    assert all(response.status_code < 500 for response in answers.values()), answers


@pytest.mark.parametrize(("method", "path"), WRITES, ids=[" ".join(row) for row in WRITES])
def test_t1_only_who_may_changes_anything(clients, filled, method, path):
    """With a body that works: each of the others is refused and leaves every table as it was, and it does work."""
    write, address = WRITES[method, path], address_of(path, filled)
    before = contents()
    for who in CAST:
        if who not in write.who:
            response = sent(clients[who], method, address, write.body)
            # 400: what the body names, a tenant for instance, is not there for them.
            assert is_refusal(response) or response.status_code == 400, (who, response)
    assert contents() == before
    changed = set()
    for who in sorted(write.who):
        with transaction.atomic():
            response = sent(clients[who], method, address, write.body)
            assert not is_refusal(response), (who, response)
            assert response.status_code < 500, (who, response)
            changed |= {who} if contents() != before else set()
            transaction.set_rollback(True)
    assert changed or write.body is None, ("the body of this row does nothing", response.content.decode())


def test_t1_what_has_no_rule_is_refused_to_everybody(clients, filled):
    before, done = contents(), []
    for path, method in itertools.product(RULES, WRITING):
        if (method, path) not in WRITES:
            answers = {who: sent(clients[who], method, address_of(path, filled), {}) for who in CAST}
            open_to = {who for who, told in answers.items() if not (is_refusal(told) or told.status_code == 405)}
            done += [(method, path, open_to)] if open_to else []
    assert not done
    assert contents() == before


def sent(client: Client, method: str, address: str, body: dict[str, Any] | None) -> HttpResponse:
    if address.startswith("/api/"):
        return client.generic(method, address, json.dumps(body or {}), content_type="application/json")
    return client.generic(method, address, urlencode(body or {}), content_type="application/x-www-form-urlencoded")


def is_refusal(response: HttpResponse) -> bool:
    """Return whether nothing was done. A page also sends on after what was done, but never to sign in."""
    to_sign_in = response.status_code == 302 and response["Location"].startswith("/sign-in/?next=")
    return to_sign_in or response.status_code in CLOSED


def contents() -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables but sessions: what a refused request must leave as it was."""
    found = {}
    with connection.cursor() as cursor:
        for model in apps.get_models(include_auto_created=True):
            if model is not Session and model._meta.managed:
                cursor.execute(f'SELECT * FROM "{model._meta.db_table}"')
                found[model._meta.db_table] = sorted(cursor.fetchall(), key=repr)
    return found


@pytest.mark.parametrize("who", CAST)
def test_the_usage_of_a_tenant_is_for_its_admin_and_for_operators(clients, research, who):
    for page in ("/usage/", "/usage/export/"):
        status = clients[who].get(page, {"of": TENANT + research.slug}).status_code
        assert status == {"nobody": 302, "bob": 200, "olivia": 200}.get(who, 404)
