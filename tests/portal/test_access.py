"""Who may call which address: the cast on every one of the site. An address without a rule here fails."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, get_resolver
from django.utils import timezone

from modelregistry.models import Host, Replica
from portal.api import keys as management_keys
from portal.metering.models import Quota, QuotaRequest
from portal.metering.scopes import TENANT
from portal.notices import telling
from portal.notices.models import Notice
from tests.pages import key_of, serve

pytestmark = pytest.mark.django_db

CAST = ("nobody", "alice", "bob", "charlie", "olivia")
# A sign-in page (302), a refusal (401, 403), or nothing that one may know of (404).
CLOSED = frozenset({302, 401, 403, 404})


@dataclass(frozen=True)
class Rule:
    """Who gets more than a refusal. `method` as the page is meant to be asked."""

    who: frozenset[str]
    method: str = "GET"


EVERYBODY = Rule(frozenset(CAST))
PEOPLE = Rule(frozenset(CAST) - {"nobody"})
ALICE = Rule(frozenset({"alice"}))  # what is hers alone, also before the admin of her tenant and operators
ADMINS = Rule(frozenset({"bob", "olivia"}))  # of her tenant
OPERATORS = Rule(frozenset({"olivia"}))
PEOPLE_POST = Rule(PEOPLE.who, "POST")
ALICE_POST = Rule(ALICE.who, "POST")
MEMBERS = Rule(frozenset({"alice", "bob", "olivia"}))
OPERATORS_POST = Rule(OPERATORS.who, "POST")

RULES = {
    "": PEOPLE,
    "favicon.ico": EVERYBODY,
    "language/": Rule(EVERYBODY.who, "POST"),
    "sign-in/": EVERYBODY,
    "sign-out/": Rule(EVERYBODY.who, "POST"),
    "audit/": PEOPLE,
    "audit/export/": PEOPLE,
    "models/": PEOPLE,
    "try/": PEOPLE,
    "try/<slug:slug>/key/": Rule(frozenset({"alice", "bob"}), "POST"),  # who belongs to it, operators or not
    "keys/": PEOPLE,
    "keys/new/": PEOPLE,
    "keys/found/": PEOPLE,
    "keys/management/": PEOPLE,
    "keys/management/new/": PEOPLE,
    "keys/management/<slug:prefix>/revoke/": Rule(ALICE.who, "POST"),
    "keys/services/": PEOPLE,
    "keys/services/new/": Rule(frozenset({"bob", "olivia"})),
    "keys/<slug:prefix>/": ALICE,
    "keys/<slug:prefix>/edit/": ALICE,
    "keys/<slug:prefix>/rotate/": Rule(ALICE.who, "POST"),
    "keys/<slug:prefix>/revoke/": Rule(ALICE.who, "POST"),
    "notices/": PEOPLE,
    "notices/read/": Rule(PEOPLE.who, "POST"),
    "notices/<int:pk>/": ALICE,
    "settings/": PEOPLE,
    "usage/": PEOPLE,
    "usage/live/": PEOPLE,
    "usage/export/": PEOPLE,
    "tenants/": OPERATORS,
    "tenants/new/": OPERATORS,
    "tenants/quotas/": OPERATORS,
    "tenants/quotas/give/": OPERATORS,
    "tenants/quotas/<int:pk>/remove/": OPERATORS_POST,
    "tenant/<slug:slug>/": ADMINS,
    "tenant/<slug:slug>/edit/": OPERATORS,
    "tenant/<slug:slug>/switch/": OPERATORS,
    "tenant/<slug:slug>/people/": ADMINS,
    "tenant/<slug:slug>/people/add/": Rule(ADMINS.who, "POST"),
    "tenant/<slug:slug>/people/<int:pk>/": ADMINS,
    "tenant/<slug:slug>/people/<int:pk>/role/": Rule(ADMINS.who, "POST"),
    "tenant/<slug:slug>/people/<int:pk>/remove/": ADMINS,
    "tenant/<slug:slug>/keys/": ADMINS,
    "tenant/<slug:slug>/quotas/": ADMINS,
    "tenant/<slug:slug>/quotas/give/": ADMINS,
    "tenant/<slug:slug>/quotas/<int:pk>/remove/": Rule(ADMINS.who, "POST"),
    "tenant/<slug:slug>/requests/": ADMINS,
    "tenant/<slug:slug>/requests/<int:pk>/": Rule(ADMINS.who, "POST"),
    "more/": PEOPLE,
    "more/<int:pk>/": ALICE,
    "more/<int:pk>/withdraw/": Rule(ALICE.who, "POST"),
    "operations/": OPERATORS,
    "operations/directory/": OPERATORS,
    "operations/directory/follow/": OPERATORS_POST,
    "operations/models/new/": OPERATORS,
    "operations/models/<path:name>/": OPERATORS,
    "operations/start/<path:name>/": OPERATORS_POST,
    "operations/stop/<path:name>/": OPERATORS,
    "operations/restart/<path:name>/": OPERATORS,
    "operations/edit/<path:name>/": OPERATORS,
    "operations/unregister/<path:name>/": OPERATORS,
    "api/schema/": PEOPLE,
    "api/docs/": PEOPLE,
    "api/v1/me/": PEOPLE,
    "api/v1/me/settings/": PEOPLE,
    "api/v1/tenants/": PEOPLE,
    "api/v1/tenants/<slug:slug>/": MEMBERS,
    "api/v1/tenants/<slug:slug>/members/": ADMINS,
    "api/v1/tenants/<slug:slug>/members/<str:username>/": ADMINS,
    "api/v1/notices/": PEOPLE,
    "api/v1/notices/read/": PEOPLE_POST,
    "api/v1/notices/<int:pk>/": ALICE,
    "api/v1/notices/<int:pk>/read/": ALICE_POST,
    "api/v1/audit/": PEOPLE,
    "api/v1/usage/": PEOPLE,
    "api/v1/usage/series/": PEOPLE,
    "api/v1/usage/groups/": PEOPLE,
    "api/v1/usage/scopes/": PEOPLE,
    "api/v1/allowances/": PEOPLE,
    "api/v1/catalogue/": PEOPLE,
    "api/v1/keys/": PEOPLE,
    "api/v1/keys/found/": PEOPLE_POST,
    "api/v1/keys/<slug:prefix>/": ALICE,
    "api/v1/keys/<slug:prefix>/revoke/": ALICE_POST,
    "api/v1/keys/<slug:prefix>/rotate/": ALICE_POST,
    "api/v1/management-keys/": PEOPLE,
    "api/v1/management-keys/<slug:prefix>/revoke/": ALICE_POST,
    "api/v1/quotas/": PEOPLE,
    "api/v1/quotas/<int:pk>/": ADMINS,
    "api/v1/quota-requests/": PEOPLE,
    "api/v1/quota-requests/<int:pk>/": ADMINS,
    "api/v1/quota-requests/<int:pk>/grant/": OPERATORS_POST,
    # They learn why not: an empty note; that Bob withdrew it before.
    "api/v1/quota-requests/<int:pk>/refuse/": Rule(ADMINS.who, "POST"),
    "api/v1/quota-requests/<int:pk>/withdraw/": Rule(ADMINS.who, "POST"),
    "api/v1/overview/": OPERATORS,
    "api/v1/directory/": OPERATORS,
    "api/v1/directory/follow/": OPERATORS_POST,
    "api/v1/presets/": OPERATORS,
    "api/v1/hosts/": OPERATORS,
    "api/v1/hosts/<int:pk>/": OPERATORS,
    "api/v1/models/": OPERATORS,
    "api/v1/models/predict/": OPERATORS_POST,
    "api/v1/models/<int:pk>/": OPERATORS,
    "api/v1/models/<int:pk>/aliases/": Rule(OPERATORS.who, "PUT"),
    "api/v1/models/<int:pk>/facts/": OPERATORS,
    "api/v1/models/<int:pk>/restart/": OPERATORS_POST,
    "api/v1/models/<int:pk>/start/": OPERATORS_POST,
    "api/v1/models/<int:pk>/stop/": OPERATORS_POST,
    "api/v1/models/<int:pk>/visibility/": Rule(OPERATORS.who, "PUT"),
    "api/v1/replicas/": OPERATORS,
    "api/v1/replicas/<int:pk>/": OPERATORS,
    "api/v1/replicas/<int:pk>/log/": OPERATORS,
    "api/<anything:rest>": Rule(frozenset()),  # there is nothing
}


def addresses(resolver: Any = None, prefix: str = "") -> Iterator[str]:
    for pattern in (resolver or get_resolver()).url_patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLPattern):
            yield path
        else:
            yield from addresses(pattern, path)


def test_every_address_has_a_rule_and_every_rule_an_address():
    """Django's admin is its own matter: it is for staff, see tests of its sign-in."""
    assert {path for path in addresses() if not path.startswith("admin/")} == set(RULES)


@pytest.fixture
def clients(alice, bob, charlie, olivia) -> dict[str, Client]:
    made = {name: Client() for name in CAST}
    for person in (alice, bob, charlie, olivia):
        made[person.username].force_login(person)
    return made


@pytest.fixture
def filled(alice, bob, research) -> dict[str, str]:
    """What stands for the variable parts of addresses."""
    model = serve("qwen")
    tomorrow = timezone.now() + timedelta(days=1)
    managing, _ = management_keys.issue(user=alice, name="script", scopes_=["usage:read"], expires_at=tomorrow)
    telling.tell([alice], "membership-ended", "x", tenant="X", keys=1)
    # What is between the admins of a tenant and operators.
    daily = {"tenant": research, "unit": "tokens", "window": "day"}
    of_bob = Quota.objects.create(**daily, user=bob, amount=1)
    of_tenant = QuotaRequest.objects.create(**daily, amount=2, had=1, asked_by=bob)
    given = Quota.objects.create(tenant=research, unit="tokens", window="day", amount=1)
    default = Quota.objects.create(each="tenant", unit="requests", window="day", amount=1)
    own = QuotaRequest.objects.create(
        tenant=research, user=alice, asked_by=alice, unit="tokens", window="day", amount=2, had=1
    )
    return {
        "<str:username>": alice.username,
        "notices/<int:pk>": f"notices/{Notice.objects.get(user=alice).pk}",
        "v1/quotas/<int:pk>": f"v1/quotas/{of_bob.pk}",
        "quota-requests/<int:pk>": f"quota-requests/{of_tenant.pk}",
        "tenants/quotas/<int:pk>": f"tenants/quotas/{default.pk}",
        "<slug:slug>/quotas/<int:pk>": f"{research.slug}/quotas/{given.pk}",
        "people/<int:pk>": f"people/{alice.pk}",
        "<slug:slug>/requests/<int:pk>": f"{research.slug}/requests/{own.pk}",
        "more/<int:pk>": f"more/{own.pk}",
        "management/<slug:prefix>": f"management/{managing.prefix}",
        "management-keys/<slug:prefix>": f"management-keys/{managing.prefix}",
        "<slug:prefix>": key_of(alice, research).prefix,
        "<slug:slug>": research.slug,
        "<path:name>": model.name,
        "<anything:rest>": "nowhere\nat all",
        "hosts/<int:pk>": f"hosts/{Host.objects.get().pk}",
        "models/<int:pk>": f"models/{model.pk}",
        "replicas/<int:pk>": f"replicas/{Replica.objects.get().pk}",
    }


@pytest.mark.parametrize("path", RULES)
def test_nobody_gets_more_than_is_theirs(clients, filled, path):
    rule = RULES[path]
    address = "/" + path
    for part, value in filled.items():
        address = address.replace(part, value)
    answers = {who: clients[who].generic(rule.method, address).status_code for who in CAST}
    # A page sends on after what was done; who is sent to sign in first was refused.
    told = {who for who, status in answers.items() if status not in CLOSED or (who in rule.who and status == 302)}
    assert told == rule.who, answers
    assert all(status < 500 for status in answers.values()), answers


@pytest.mark.parametrize("who", CAST)
def test_the_usage_of_a_tenant_is_for_its_admin_and_for_operators(clients, research, who):
    for page in ("/usage/", "/usage/export/"):
        status = clients[who].get(page, {"of": TENANT + research.slug}).status_code
        assert status == {"nobody": 302, "bob": 200, "olivia": 200}.get(who, 404)
