"""Who may call which address of the site, as `test_access` holds it; and what stands for the variable parts."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from modelregistry.models import Host, Replica
from portal.accounts.models import Tenant, User
from portal.adoption import tips
from portal.lessons import invitations, seminars
from portal.lessons.forms import initial_plan
from portal.lessons.models import SeminarParticipant
from portal.notifications.models import Notice, Webhook
from portal.prices import price_list
from portal.prices.models import PriceOptions, TokenPrice
from portal.quotas.models import Quota, QuotaRequest
from portal.use_cases.reactions import add_comment
from portal.web.notify import notify
from tests.canary_runs import canary_run
from tests.conftest import person
from tests.news import announce
from tests.pages import key_of, management_key_of, serve, service_key_of, use
from tests.seminars import seminar_of
from tests.use_cases import use_case

CAST = ("nobody", "alice", "bob", "charlie", "olivia")


@dataclass(frozen=True)
class Rule:
    """Who gets more than a refusal. `method` as the page is meant to be asked."""

    who: frozenset[str]
    method: str = "GET"


@dataclass(frozen=True)
class Write:
    """Who may write there, and `body`, which works: a form for a page, JSON for the API.

    None: it needs a session's token, or writes nothing for any caller; then only the answers are looked at.
    """

    who: frozenset[str]
    body: dict[str, Any] | None = None


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
    "status/": PEOPLE,
    "news/": PEOPLE,
    "news/changes/": PEOPLE,
    "news/new/": OPERATORS,
    "news/<id:pk>/": OPERATORS,
    "news/<id:pk>/close/": Rule(MEMBERS.who, "POST"),
    "news/<id:pk>/remove/": OPERATORS_POST,
    "start/": PEOPLE,
    "start/arrive/": PEOPLE,
    "start/done/": PEOPLE_POST,
    "start/rules/": OPERATORS,
    "models/": PEOPLE,
    "models/<model:name>/": PEOPLE,
    "compare/": PEOPLE,
    "search/": PEOPLE,
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
    "keys/<slug:prefix>/user-secret/": Rule(ADMINS.who, "POST"),  # of a service key
    "notices/": PEOPLE,
    "notices/read/": Rule(PEOPLE.who, "POST"),
    "notices/webhooks/": OPERATORS,
    "notices/webhooks/new/": OPERATORS,
    "notices/webhooks/<id:pk>/": OPERATORS,
    "notices/webhooks/<id:pk>/test/": OPERATORS_POST,
    "notices/webhooks/<id:pk>/remove/": OPERATORS_POST,
    "notices/<id:pk>/": ALICE,
    "settings/": PEOPLE,
    "adoption/": ADMINS,
    "adoption/export/": ADMINS,
    "adoption/tips/": PEOPLE_POST,
    "adoption/tips/<str:token>/": EVERYBODY,  # the mailed link is the proof
    "prices/": OPERATORS,
    "prices/budgets/": OPERATORS_POST,
    "prices/display/": OPERATORS_POST,
    "prices/<id:pk>/": OPERATORS,
    "prices/<id:pk>/remove/": OPERATORS_POST,
    "usage/": PEOPLE,
    "usage/costs/export/": PEOPLE,
    "usage/live/": PEOPLE,
    "usage/export/": PEOPLE,
    "requests/": PEOPLE,
    "requests/export/": PEOPLE,
    "requests/<str:request_id>/": MEMBERS,
    "use-cases/": PEOPLE,
    "use-cases/new/": PEOPLE,
    "use-cases/<id:pk>/": MEMBERS,
    "use-cases/<id:pk>/edit/": MEMBERS,  # Alice proposed it
    "use-cases/<id:pk>/history/": MEMBERS,
    "use-cases/<id:pk>/decide/": Rule(MEMBERS.who, "POST"),
    "use-cases/<id:pk>/try/": Rule(MEMBERS.who, "POST"),
    "use-cases/<id:pk>/helped/": Rule(MEMBERS.who, "POST"),
    "use-cases/<id:pk>/comments/": Rule(MEMBERS.who, "POST"),
    "use-cases/<id:pk>/comments/<id:comment_pk>/delete/": Rule(MEMBERS.who, "POST"),
    "feedback/": ADMINS,
    "lessons/": PEOPLE,
    "lessons/interest/": PEOPLE_POST,
    "lessons/<slug:course>/": PEOPLE,
    "lessons/join/": PEOPLE,
    "lessons/seminars/new/": ADMINS,
    "lessons/seminars/<id:pk>/": ADMINS,
    "lessons/seminars/<id:pk>/sheet/": ADMINS,
    "lessons/seminars/<id:pk>/edit/": ADMINS,
    "lessons/seminars/<id:pk>/join/": ALICE,  # the organiser named her
    "lessons/seminars/<id:pk>/people/": Rule(ADMINS.who, "POST"),
    "lessons/seminars/<id:pk>/people/<id:person_pk>/remove/": Rule(ADMINS.who, "POST"),
    "lessons/seminars/<id:pk>/keys/<id:participant_pk>/": ADMINS,
    "lessons/seminars/<id:pk>/end/": Rule(ADMINS.who, "POST"),
    "feedback/give/": PEOPLE_POST,
    "tenants/": OPERATORS,
    "tenants/new/": OPERATORS,
    "tenants/quotas/": OPERATORS,
    "tenants/quotas/give/": OPERATORS,
    "tenants/quotas/<id:pk>/remove/": OPERATORS_POST,
    "tenant/<slug:slug>/": ADMINS,
    "tenant/<slug:slug>/edit/": OPERATORS,
    "tenant/<slug:slug>/switch/": OPERATORS,
    "tenant/<slug:slug>/people/": ADMINS,
    "tenant/<slug:slug>/people/add/": Rule(ADMINS.who, "POST"),
    "tenant/<slug:slug>/people/<id:pk>/": ADMINS,
    "tenant/<slug:slug>/people/<id:pk>/role/": Rule(ADMINS.who, "POST"),
    "tenant/<slug:slug>/people/<id:pk>/champion/": Rule(ADMINS.who, "POST"),
    "tenant/<slug:slug>/people/<id:pk>/remove/": ADMINS,
    "tenant/<slug:slug>/keys/": ADMINS,
    "tenant/<slug:slug>/quotas/": ADMINS,
    "tenant/<slug:slug>/quotas/give/": ADMINS,
    "tenant/<slug:slug>/quotas/<id:pk>/remove/": Rule(ADMINS.who, "POST"),
    "tenant/<slug:slug>/requests/": ADMINS,
    "tenant/<slug:slug>/requests/<id:pk>/": Rule(ADMINS.who, "POST"),
    "more/": PEOPLE,
    "more/<id:pk>/": ALICE,
    "more/<id:pk>/withdraw/": Rule(ALICE.who, "POST"),
    "operations/": OPERATORS,
    "operations/queue/": OPERATORS,
    "operations/weights/": OPERATORS,
    "operations/data/": OPERATORS,
    "operations/directory/": OPERATORS,
    "operations/directory/sync/": OPERATORS_POST,
    "operations/hosts/<id:pk>/": OPERATORS,
    "operations/hosts/<id:pk>/remove/": OPERATORS,
    "operations/hosts/<id:pk>/history/": OPERATORS,
    "operations/history/<path:name>/": OPERATORS,
    "operations/canary/<id:pk>/": OPERATORS,
    "operations/canary/<id:pk>/accept/": OPERATORS_POST,
    "operations/ask/<path:name>/": OPERATORS_POST,
    "operations/models/new/": OPERATORS,
    "operations/models/<path:name>/": OPERATORS,
    "operations/start/<path:name>/": OPERATORS_POST,
    "operations/calm/<path:name>/": OPERATORS_POST,
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
    "api/v1/tenants/<slug:slug>/courses/": ADMINS,
    "api/v1/courses/": PEOPLE,
    "api/v1/seminars/": PEOPLE,
    "api/v1/seminars/<int:pk>/": ADMINS,
    "api/v1/seminars/<int:pk>/end/": Rule(ADMINS.who, "POST"),
    "api/v1/seminars/<int:pk>/people/": Rule(ADMINS.who, "POST"),
    "api/v1/seminars/<int:pk>/progress/": ADMINS,
    "api/v1/seminars/<int:pk>/withdraw/": Rule(ADMINS.who, "POST"),
    "api/v1/seminars/<int:pk>/take-back/": Rule(ADMINS.who, "POST"),
    "api/v1/seminars/join/": Rule(PEOPLE.who, "POST"),
    "api/v1/news/": PEOPLE,
    "api/v1/news/<int:pk>/": MEMBERS,  # for her tenant
    "api/v1/house-rules/": PEOPLE,
    "api/v1/status/": PEOPLE,
    "api/v1/webhooks/": OPERATORS,
    "api/v1/webhooks/<int:pk>/": OPERATORS,
    "api/v1/webhooks/<int:pk>/test/": OPERATORS_POST,
    "api/v1/notices/": PEOPLE,
    "api/v1/notices/read/": PEOPLE_POST,
    "api/v1/notices/<int:pk>/": ALICE,
    "api/v1/notices/<int:pk>/read/": ALICE_POST,
    "api/v1/audit/": PEOPLE,
    "api/v1/usage/": PEOPLE,
    "api/v1/usage/series/": PEOPLE,
    "api/v1/usage/groups/": PEOPLE,
    "api/v1/usage/scopes/": PEOPLE,
    "api/v1/requests/": PEOPLE,
    "api/v1/requests/<str:request_id>/": MEMBERS,
    "api/v1/allowances/": PEOPLE,
    "api/v1/catalogue/": PEOPLE,
    "api/v1/use-cases/": PEOPLE,
    "api/v1/use-cases/<int:pk>/": MEMBERS,
    "api/v1/keys/": PEOPLE,
    "api/v1/keys/found/": PEOPLE_POST,
    "api/v1/keys/<slug:prefix>/": ALICE,
    "api/v1/keys/<slug:prefix>/revoke/": ALICE_POST,
    "api/v1/keys/<slug:prefix>/rotate/": ALICE_POST,
    "api/v1/keys/<slug:prefix>/user-secret/": Rule(ADMINS.who, "POST"),
    "api/v1/management-keys/": PEOPLE,
    "api/v1/management-keys/<slug:prefix>/revoke/": ALICE_POST,
    "api/v1/prices/": OPERATORS,
    "api/v1/prices/<int:pk>/": OPERATORS,
    "api/v1/prices/settings/": OPERATORS,
    "api/v1/quotas/": PEOPLE,
    "api/v1/quotas/<int:pk>/": ADMINS,
    "api/v1/quota-requests/": PEOPLE,
    "api/v1/quota-requests/<int:pk>/": ADMINS,
    "api/v1/quota-requests/<int:pk>/grant/": OPERATORS_POST,
    # They learn why not: an empty note; that Bob withdrew it before.
    "api/v1/quota-requests/<int:pk>/refuse/": Rule(ADMINS.who, "POST"),
    "api/v1/quota-requests/<int:pk>/withdraw/": Rule(ADMINS.who, "POST"),
    "api/v1/overview/": OPERATORS,
    "api/v1/queue/": OPERATORS,
    "api/v1/weights/": OPERATORS,
    "api/v1/directory/": OPERATORS,
    "api/v1/directory/sync/": OPERATORS_POST,
    "api/v1/presets/": OPERATORS,
    "api/v1/hosts/": OPERATORS,
    "api/v1/hosts/<int:pk>/": OPERATORS,
    "api/v1/models/": OPERATORS,
    "api/v1/models/predict/": OPERATORS_POST,
    "api/v1/models/<int:pk>/": OPERATORS,
    "api/v1/models/<int:pk>/aliases/": Rule(OPERATORS.who, "PUT"),
    "api/v1/models/<int:pk>/facts/": OPERATORS,
    "api/v1/models/<int:pk>/loops/": OPERATORS,
    "api/v1/models/<int:pk>/evictions/": OPERATORS,
    "api/v1/hosts/<int:pk>/evictions/": OPERATORS,
    "api/v1/hosts/<int:pk>/moves/": OPERATORS,
    "api/v1/hosts/<int:pk>/history/": OPERATORS,
    "api/v1/models/<int:pk>/history/": OPERATORS,
    "api/v1/models/<int:pk>/canary/": OPERATORS,
    "api/v1/models/<int:pk>/restart/": OPERATORS_POST,
    "api/v1/models/<int:pk>/start/": OPERATORS_POST,
    "api/v1/models/<int:pk>/stop/": OPERATORS_POST,
    "api/v1/models/<int:pk>/visibility/": Rule(OPERATORS.who, "PUT"),
    "api/v1/replicas/": OPERATORS,
    "api/v1/replicas/<int:pk>/": OPERATORS,
    "api/v1/replicas/<int:pk>/log/": OPERATORS,
    "api/<anything:rest>": Rule(frozenset()),  # there is nothing
}

TENANT_FORM = {"name": "研究所", "slug": "lab", "time_zone": "Asia/Tokyo", "key_days": "90"}
MODEL_FORM = {
    **{"name": "other", "task": "chat", "engine": "external", "url": "http://127.0.0.1:9", "context": "4096"},
    **{"slots": "1", "replicas": "1", "tensor_parallel": "1", "upstream_model": "theirs"},
}
PRICE_FORM = {
    **{"kind": "internal", "model": "qwen", "first_day": "2026-05-01", "input_price": "0.5", "output_price": "1.5"},
}
KEY_FORM = {"name": "desk", "every_model": "yes", "key_class": "interactive"}
SOON = str(timezone.localdate() + timedelta(days=2))
QUOTA_FORM = {"kind": "requests/day", "model": "", "amount": "1"}
WEBHOOK_FORM = {
    **{"name": "operations", "style": "slack", "url": "http://127.0.0.1:9/hook", "language": "ja"},
    **{"kinds": "canary-failed", "is_active": "on"},
}
NEWS_FORM = {
    **{"level": "info", "title_ja": "新モデル", "begins_at": f"{SOON}T09:00", "ends_at": f"{SOON}T19:00"},
    "days_ahead": "1",
}
NEWS = {"title_en": "New", "begins_at": f"{SOON}T09:00:00+09:00", "ends_at": f"{SOON}T19:00:00+09:00"}
WEBHOOK = {"name": "operations", "style": "slack", "url": "http://127.0.0.1:9/hook"}
MEMBER_QUOTA = {"tenant": "research", "user": "alice", "unit": "requests", "window": "day", "amount": 1}

PLAN_FORM = {
    **{"title": "Begin", "course": "everyone", "day": SOON, "begins": "10:00", "ends": "12:00"},
    **{"places": "30", "tokens": "1"},
}
SEMINAR_FORM = {**PLAN_FORM, "tenant": "research"}
EDITED_PLAN: dict[str, Any] = {}  # of the seminar that there is: people have joined it, so its beginning stays
NEW_SEMINAR = {
    **{"tenant": "research", "course": "everyone", "tokens": 1},
    **{"begins_at": f"{SOON}T10:00:00+09:00", "ends_at": f"{SOON}T12:00:00+09:00"},
}
USE_CASE_FORM = {
    "seen": "1",
    **{"tenant": "research", "kind": "write", "departments": "everyone", "model": "", "step": "draft"},
    **{"en-title": "Reply", "en-summary": "A reply to a mail.", "en-prompt": "Answer politely: {{mail}}"},
    **{"en-fields-TOTAL_FORMS": "1", "en-fields-INITIAL_FORMS": "0", "en-fields-0-name": "mail"},
    **{"ja-fields-TOTAL_FORMS": "0", "ja-fields-INITIAL_FORMS": "0"},
}
USE_CASE = {
    **{"tenant": "research", "kind": "write", "departments": ["everyone"]},
    "texts": [{"language": "en", "title": "Reply", "summary": "A reply.", "prompt": "Answer politely."}],
}

# Every way to change something: what is not here no person may do, with whatever method, at whatever address.
WRITES = {
    ("POST", "language/"): Write(EVERYBODY.who),
    ("POST", "sign-in/"): Write(EVERYBODY.who),
    ("POST", "sign-out/"): Write(EVERYBODY.who),
    ("POST", "try/<slug:slug>/key/"): Write(frozenset({"alice", "bob"}), {}),
    ("POST", "adoption/tips/"): Write(PEOPLE.who, {"tips": "off"}),
    ("POST", "adoption/tips/<str:token>/"): Write(EVERYBODY.who, {"tips": "off"}),
    ("POST", "prices/"): Write(OPERATORS.who, PRICE_FORM),
    ("POST", "prices/budgets/"): Write(OPERATORS.who, {"tenant": "research", "yen": "5000"}),
    ("POST", "prices/display/"): Write(OPERATORS.who, {"people": "hide"}),
    ("POST", "prices/<id:pk>/"): Write(OPERATORS.who, PRICE_FORM),
    ("POST", "prices/<id:pk>/remove/"): Write(OPERATORS.who, {}),
    ("POST", "keys/new/"): Write(PEOPLE.who),
    ("POST", "keys/found/"): Write(PEOPLE.who),
    ("POST", "keys/management/new/"): Write(PEOPLE.who),
    ("POST", "keys/management/<slug:prefix>/revoke/"): Write(ALICE.who, {}),
    ("POST", "keys/services/new/"): Write(ADMINS.who),
    ("POST", "keys/<slug:prefix>/edit/"): Write(ALICE.who, KEY_FORM),
    ("POST", "keys/<slug:prefix>/rotate/"): Write(ALICE.who, {"overlap": "7"}),
    ("POST", "keys/<slug:prefix>/revoke/"): Write(ALICE.who, {"because": "lost"}),
    ("POST", "keys/<slug:prefix>/user-secret/"): Write(ADMINS.who, {"secret": "new"}),
    ("POST", "notices/read/"): Write(PEOPLE.who),
    ("POST", "notices/webhooks/new/"): Write(OPERATORS.who, WEBHOOK_FORM),
    ("POST", "notices/webhooks/<id:pk>/"): Write(OPERATORS.who, WEBHOOK_FORM),
    ("POST", "notices/webhooks/<id:pk>/test/"): Write(OPERATORS.who, {}),
    ("POST", "notices/webhooks/<id:pk>/remove/"): Write(OPERATORS.who, {}),
    ("POST", "news/new/"): Write(OPERATORS.who, NEWS_FORM),
    ("POST", "news/<id:pk>/"): Write(OPERATORS.who, NEWS_FORM),
    ("POST", "news/<id:pk>/close/"): Write(MEMBERS.who, {}),
    ("POST", "news/<id:pk>/remove/"): Write(OPERATORS.who, {}),
    ("POST", "start/done/"): Write(PEOPLE.who),
    ("POST", "start/rules/"): Write(OPERATORS.who, {"rules_ja": "規則", "edition": "0"}),
    ("POST", "settings/"): Write(PEOPLE.who, {"language": "en", "theme": "dark", "wants_mail": ""}),
    ("POST", "use-cases/new/"): Write(MEMBERS.who, USE_CASE_FORM),
    ("POST", "use-cases/<id:pk>/edit/"): Write(MEMBERS.who, USE_CASE_FORM),
    ("POST", "use-cases/<id:pk>/decide/"): Write(ADMINS.who, {"verdict": "hide"}),
    ("POST", "use-cases/<id:pk>/try/"): Write(MEMBERS.who, {}),
    ("POST", "use-cases/<id:pk>/helped/"): Write(MEMBERS.who, {"helped": "yes", "minutes": "5"}),
    ("POST", "use-cases/<id:pk>/comments/"): Write(MEMBERS.who, {"text": "good"}),
    ("POST", "use-cases/<id:pk>/comments/<id:comment_pk>/delete/"): Write(MEMBERS.who, {}),
    ("POST", "feedback/give/"): Write(PEOPLE.who),
    ("POST", "lessons/join/"): Write(PEOPLE.who),
    ("POST", "lessons/seminars/new/"): Write(ADMINS.who, SEMINAR_FORM),
    ("POST", "lessons/seminars/<id:pk>/edit/"): Write(ADMINS.who, EDITED_PLAN),
    ("POST", "lessons/seminars/<id:pk>/join/"): Write(ALICE.who, {}),
    ("POST", "lessons/seminars/<id:pk>/people/"): Write(ADMINS.who, {"names": "bob"}),
    ("POST", "lessons/seminars/<id:pk>/people/<id:person_pk>/remove/"): Write(ADMINS.who, {}),
    ("POST", "lessons/seminars/<id:pk>/keys/<id:participant_pk>/"): Write(ADMINS.who, {"reason": ""}),
    ("POST", "lessons/seminars/<id:pk>/end/"): Write(ADMINS.who, {}),
    ("POST", "api/v1/seminars/"): Write(ADMINS.who, NEW_SEMINAR),
    ("PATCH", "api/v1/seminars/<int:pk>/"): Write(ADMINS.who, {"places": 7}),
    ("POST", "api/v1/seminars/<int:pk>/end/"): Write(ADMINS.who, {}),
    ("POST", "api/v1/seminars/<int:pk>/people/"): Write(ADMINS.who, {"people": ["bob"]}),
    ("POST", "api/v1/seminars/<int:pk>/withdraw/"): Write(ADMINS.who, {"person": "alice"}),
    ("POST", "api/v1/seminars/<int:pk>/take-back/"): Write(ADMINS.who, {"person": "guest"}),
    ("POST", "api/v1/seminars/join/"): Write(PEOPLE.who, None),
    ("POST", "lessons/interest/"): Write(PEOPLE.who, {"interest": "off"}),
    ("POST", "api/v1/use-cases/"): Write(frozenset({"alice", "bob"}), USE_CASE),
    ("POST", "tenants/new/"): Write(OPERATORS.who, TENANT_FORM),
    ("POST", "tenants/quotas/give/"): Write(OPERATORS.who, {"kind": "tokens/day", "model": "", "amount": "1"}),
    ("POST", "tenants/quotas/<id:pk>/remove/"): Write(OPERATORS.who, {}),
    ("POST", "tenant/<slug:slug>/edit/"): Write(OPERATORS.who, TENANT_FORM),
    ("POST", "tenant/<slug:slug>/switch/"): Write(OPERATORS.who, {"to": "off"}),
    ("POST", "tenant/<slug:slug>/people/add/"): Write(ADMINS.who, {"username": "charlie", "role": "member"}),
    ("POST", "tenant/<slug:slug>/people/<id:pk>/role/"): Write(ADMINS.who, {"role": "admin"}),
    ("POST", "tenant/<slug:slug>/people/<id:pk>/champion/"): Write(ADMINS.who, {"champion": "yes"}),
    ("POST", "tenant/<slug:slug>/people/<id:pk>/remove/"): Write(ADMINS.who, {}),
    ("POST", "tenant/<slug:slug>/quotas/give/"): Write(ADMINS.who, QUOTA_FORM),
    ("POST", "tenant/<slug:slug>/quotas/<id:pk>/remove/"): Write(ADMINS.who, {}),  # Bob reads that it is not his
    ("POST", "tenant/<slug:slug>/requests/<id:pk>/"): Write(
        ADMINS.who, {"verdict": "refuse", "amount": "1", "note": "no"}
    ),
    ("POST", "more/"): Write(
        ADMINS.who, {"to": "tenant:research", "unit": "requests", "window": "day", "model": "", "amount": "9"}
    ),
    ("POST", "more/<id:pk>/"): Write(ALICE.who, {"amount": "3", "reason": "why"}),
    ("POST", "more/<id:pk>/withdraw/"): Write(ALICE.who, {}),
    ("POST", "operations/weights/"): Write(OPERATORS.who, {"of": "class:batch", "weight": "2"}),
    ("POST", "operations/directory/sync/"): Write(OPERATORS.who),
    ("POST", "operations/hosts/<id:pk>/"): Write(
        OPERATORS.who, {"address": "10.0.0.9", "maintenance": "on", "confirmed": "yes"}
    ),
    ("POST", "operations/hosts/<id:pk>/remove/"): Write(OPERATORS.who, {}),
    ("POST", "operations/canary/<id:pk>/accept/"): Write(OPERATORS.who, {}),
    ("POST", "operations/ask/<path:name>/"): Write(OPERATORS.who, {}),
    ("POST", "operations/models/new/"): Write(OPERATORS.who, MODEL_FORM),
    ("POST", "operations/start/<path:name>/"): Write(OPERATORS.who),
    ("POST", "operations/calm/<path:name>/"): Write(OPERATORS.who, {}),
    ("POST", "operations/stop/<path:name>/"): Write(OPERATORS.who, {}),
    ("POST", "operations/restart/<path:name>/"): Write(OPERATORS.who, {}),
    ("POST", "operations/edit/<path:name>/"): Write(OPERATORS.who, MODEL_FORM),
    ("POST", "operations/unregister/<path:name>/"): Write(OPERATORS.who, {}),
    ("PATCH", "api/v1/me/settings/"): Write(PEOPLE.who, {"wants_mail": False}),
    ("POST", "api/v1/tenants/"): Write(OPERATORS.who, TENANT_FORM),
    ("PATCH", "api/v1/tenants/<slug:slug>/"): Write(OPERATORS.who, {"is_active": False}),
    ("POST", "api/v1/tenants/<slug:slug>/members/"): Write(ADMINS.who, {"user": "charlie"}),
    ("PATCH", "api/v1/tenants/<slug:slug>/members/<str:username>/"): Write(ADMINS.who, {"role": "admin"}),
    ("DELETE", "api/v1/tenants/<slug:slug>/members/<str:username>/"): Write(ADMINS.who, {}),
    ("POST", "api/v1/news/"): Write(OPERATORS.who, NEWS),
    ("PATCH", "api/v1/news/<int:pk>/"): Write(OPERATORS.who, {"title_en": "A new model"}),
    ("DELETE", "api/v1/news/<int:pk>/"): Write(OPERATORS.who, {}),
    ("PATCH", "api/v1/house-rules/"): Write(OPERATORS.who, {"edition": 0, "rules_ja": "規則"}),
    ("POST", "api/v1/webhooks/"): Write(OPERATORS.who, WEBHOOK),
    ("PATCH", "api/v1/webhooks/<int:pk>/"): Write(OPERATORS.who, {"kinds": ["canary-failed"]}),
    ("DELETE", "api/v1/webhooks/<int:pk>/"): Write(OPERATORS.who, {}),
    ("POST", "api/v1/webhooks/<int:pk>/test/"): Write(OPERATORS.who, {}),
    ("POST", "api/v1/notices/read/"): Write(PEOPLE.who),
    ("POST", "api/v1/notices/<int:pk>/read/"): Write(ALICE.who, {}),
    ("POST", "api/v1/keys/"): Write(frozenset({"alice", "bob"}), {"tenant": "research", "name": "mine"}),
    ("POST", "api/v1/keys/found/"): Write(PEOPLE.who),
    ("PATCH", "api/v1/keys/<slug:prefix>/"): Write(ALICE.who, {"name": "desk"}),
    ("POST", "api/v1/keys/<slug:prefix>/revoke/"): Write(ALICE.who, {"because": "lost"}),
    ("POST", "api/v1/keys/<slug:prefix>/rotate/"): Write(ALICE.who, {"overlap_hours": 1}),
    ("POST", "api/v1/keys/<slug:prefix>/user-secret/"): Write(ADMINS.who, {}),
    ("DELETE", "api/v1/keys/<slug:prefix>/user-secret/"): Write(ADMINS.who, {}),
    ("PATCH", "api/v1/weights/"): Write(OPERATORS.who, {"of": "class:batch", "weight": 2}),
    ("POST", "api/v1/management-keys/"): Write(PEOPLE.who),
    ("POST", "api/v1/management-keys/<slug:prefix>/revoke/"): Write(ALICE.who, {}),
    ("POST", "api/v1/prices/"): Write(OPERATORS.who, {name: PRICE_FORM[name] for name in PRICE_FORM if name != "kind"}),
    ("PATCH", "api/v1/prices/<int:pk>/"): Write(OPERATORS.who, {"output_price": "3"}),
    ("DELETE", "api/v1/prices/<int:pk>/"): Write(OPERATORS.who, {}),
    ("PATCH", "api/v1/prices/settings/"): Write(OPERATORS.who, {"tenant": "research", "yen": 5000}),
    ("POST", "api/v1/quotas/"): Write(ADMINS.who, MEMBER_QUOTA),
    ("PATCH", "api/v1/quotas/<int:pk>/"): Write(OPERATORS.who, {"amount": 0}),
    ("DELETE", "api/v1/quotas/<int:pk>/"): Write(OPERATORS.who, {}),
    ("POST", "api/v1/quota-requests/"): Write(
        frozenset({"bob"}), {"tenant": "research", "user": "bob", "unit": "tokens", "window": "day", "amount": 9}
    ),
    ("PATCH", "api/v1/quota-requests/<int:pk>/"): Write(frozenset({"bob"}), {"amount": 3}),
    ("POST", "api/v1/quota-requests/<int:pk>/grant/"): Write(OPERATORS.who, {}),
    ("POST", "api/v1/quota-requests/<int:pk>/refuse/"): Write(OPERATORS.who, {"note": "no"}),
    ("POST", "api/v1/quota-requests/<int:pk>/withdraw/"): Write(frozenset({"bob"}), {}),
    ("POST", "api/v1/directory/sync/"): Write(OPERATORS.who),
    ("POST", "api/v1/models/"): Write(
        OPERATORS.who, {"name": "other", "engine": "external", "url": "http://127.0.0.1:9"}
    ),
    ("POST", "api/v1/models/<int:pk>/canary/"): Write(OPERATORS.who, {}),
    ("POST", "api/v1/models/predict/"): Write(OPERATORS.who),
    ("PATCH", "api/v1/hosts/<int:pk>/"): Write(OPERATORS.who, {"maintenance": True}),
    ("DELETE", "api/v1/hosts/<int:pk>/"): Write(OPERATORS.who, {}),
    ("PATCH", "api/v1/models/<int:pk>/"): Write(OPERATORS.who, {"description_en": "new words"}),
    ("DELETE", "api/v1/models/<int:pk>/"): Write(OPERATORS.who, {}),
    ("PUT", "api/v1/models/<int:pk>/aliases/"): Write(OPERATORS.who, {"aliases": ["mine"]}),
    ("POST", "api/v1/models/<int:pk>/restart/"): Write(OPERATORS.who, {}),
    ("POST", "api/v1/models/<int:pk>/start/"): Write(OPERATORS.who),
    ("POST", "api/v1/models/<int:pk>/stop/"): Write(OPERATORS.who, {}),
    ("PUT", "api/v1/models/<int:pk>/visibility/"): Write(OPERATORS.who, {"tenants": ["research"]}),
}


@pytest.fixture
def clients(alice: User, bob: User, charlie: User, olivia: User) -> dict[str, Client]:
    made = {name: Client() for name in CAST}
    for one in (alice, bob, charlie, olivia):
        made[one.username].force_login(one)
    return made


@pytest.fixture
def filled(alice: User, bob: User, research: Tenant) -> dict[str, str]:
    """Return what replaces the variable parts of addresses."""
    return fill(alice, bob, research)


def fill(alice: User, bob: User, research: Tenant) -> dict[str, str]:
    """Make a row of each kind; return what replaces the variable parts of addresses."""
    model = serve("qwen")
    managing, _ = management_key_of(alice, "usage:read")
    notify([alice], "membership-ended", "x", tenant="X", keys=1)
    # What is between the admins of a tenant and operators.
    daily = {"tenant": research, "unit": "tokens", "window": "day"}
    of_bob = Quota.objects.create(**daily, user=bob, amount=1)
    of_tenant = QuotaRequest.objects.create(**daily, amount=2, previous_amount=1, asked_by=bob)
    given = Quota.objects.create(tenant=research, unit="tokens", window="day", amount=1)
    default = Quota.objects.create(default_for="tenant", unit="requests", window="day", amount=1)
    own = QuotaRequest.objects.create(
        tenant=research, user=alice, asked_by=alice, unit="tokens", window="day", amount=2, previous_amount=1
    )
    key = key_of(alice, research)
    news = announce(research)  # current
    webhook = Webhook.objects.create(name="hook", url="http://127.0.0.1:9/hook")
    case = use_case(alice, research, publisher=bob)
    comment = add_comment(alice, case, "good")
    seminar = seminar_of(research, bob, tokens=1)
    EDITED_PLAN.update({name: str(value) for name, value in initial_plan(seminar).items()}, title="Begin again")
    invitations.name_people(bob, seminar, [alice])
    guest = person("guest", research)
    seminars.join_seminar(guest, seminars.code_of(seminar), timezone.now())
    price = TokenPrice.objects.create(model="qwen", first_day="2026-04-01", input_price=1, output_price=2)
    PriceOptions.objects.create(pk=price_list.ROW, shown_to_people=True)
    return {
        "webhooks/<id:pk>": f"webhooks/{webhook.pk}",
        "webhooks/<int:pk>": f"webhooks/{webhook.pk}",
        "news/<id:pk>": f"news/{news.pk}",
        "news/<int:pk>": f"news/{news.pk}",
        "prices/<id:pk>": f"prices/{price.pk}",
        "prices/<int:pk>": f"prices/{price.pk}",
        "<str:username>": alice.username,
        "<str:token>": tips.link_of(alice).strip("/").rpartition("/")[2],
        "<str:request_id>": use(key).request_id,
        "<id:comment_pk>": str(comment.pk),
        "use-cases/<id:pk>": f"use-cases/{case.pk}",
        "use-cases/<int:pk>": f"use-cases/{case.pk}",
        "notices/<id:pk>": f"notices/{Notice.objects.get(user=alice, kind='membership-ended').pk}",
        "notices/<int:pk>": f"notices/{Notice.objects.get(user=alice, kind='membership-ended').pk}",
        "v1/quotas/<int:pk>": f"v1/quotas/{of_bob.pk}",
        "quota-requests/<int:pk>": f"quota-requests/{of_tenant.pk}",
        "tenants/quotas/<id:pk>": f"tenants/quotas/{default.pk}",
        "<slug:slug>/quotas/<id:pk>": f"{research.slug}/quotas/{given.pk}",
        "people/<id:pk>": f"people/{alice.pk}",
        "<slug:slug>/requests/<id:pk>": f"{research.slug}/requests/{own.pk}",
        "more/<id:pk>": f"more/{own.pk}",
        "canary/<id:pk>": f"canary/{canary_run(model).pk}",
        "management/<slug:prefix>": f"management/{managing.prefix}",
        "management-keys/<slug:prefix>": f"management-keys/{managing.prefix}",
        "<slug:prefix>/user-secret": f"{service_key_of(research).prefix}/user-secret",
        "<slug:prefix>": key.prefix,
        "<slug:slug>": research.slug,
        "<slug:course>": "everyone",
        "<id:person_pk>": str(alice.pk),
        "<id:participant_pk>": str(SeminarParticipant.objects.get(user=guest).pk),
        "seminars/<id:pk>": f"seminars/{seminar.pk}",
        "seminars/<int:pk>": f"seminars/{seminar.pk}",
        "<path:name>": model.name,
        "<model:name>": model.name,
        "<anything:rest>": "nowhere\nat all",
        "hosts/<int:pk>": f"hosts/{Host.objects.get().pk}",
        "hosts/<id:pk>": f"hosts/{Host.objects.get().pk}",
        "models/<int:pk>": f"models/{model.pk}",
        "replicas/<int:pk>": f"replicas/{Replica.objects.get().pk}",
    }


def address_of(path: str, filled: dict[str, str]) -> str:
    for part, value in filled.items():
        path = path.replace(part, value)
    return "/" + path
