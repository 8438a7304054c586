"""An installation of version 1.0.0 as it was found at an upgrade: its schema, with rows of every kind.

`python -m tests.first_schema fill` makes it in the empty database that the settings name, and prints what is in it;
`count` prints the same of a database that was migrated since; `pages` opens every page that needs no number, and prints
those that fail. They run in processes of their own, as they need the settings of that installation.
"""

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import django

APPS = ("accounts", "apiproxy", "audit", "keys", "modelregistry", "notifications", "quotas", "usage")
FIRST = [(app, "0001_initial") for app in APPS]  # what version 1.0.0 consisted of
GONE = {"modelregistry.hostbid"}  # models that later versions have no use for
NOW = datetime(2026, 11, 3, 1, 30, tzinfo=UTC)
DAYS = 70  # of usage, so in three months
PREDICTION = {"weights": 4, "cache": 2, "cache_least": 1, "overhead": 1, "total": 7, "rule_of_thumb": 6, "devices": 2}
PREDICTION |= {"context": 8192, "sequences": 4}
SUMS = {"hour": "usagehour", "day": "usageday", "month": "usagemonth", "tenantday": "usagetenantday"}


def fill() -> dict[str, Any]:
    """Make the schema and the rows; return how many of each model, all tokens, and the text of a key."""
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    others = [node for node in executor.loader.graph.leaf_nodes() if node[0] in ("auth", "sessions", "axes")]
    state = executor.migrate([*FIRST, *others])
    models = state.apps
    text = _fill_people(models.get_model)
    _fill_models(models.get_model)
    _fill_usage(models.get_model)
    empty = [
        one._meta.label_lower
        for one in models.get_models()
        if one._meta.app_label in APPS and not one._default_manager.count()
    ]
    assert not empty, empty
    return {**_count(models.get_models()), "key": text}


def _fill_people(model: Callable[[str, str], Any]) -> str:
    from django.conf import settings
    from django.contrib.auth.hashers import make_password

    from portal.keys.secret import MANAGEMENT_PREFIX, PREFIX_LENGTH, digest_of, make_secret

    research = model("accounts", "Tenant").objects.create(slug="research", name="研究部", key_days=90)
    model("accounts", "Tenant").objects.create(slug="closed", name="旧営業部", is_active=False)
    people = model("accounts", "User").objects
    alice = people.create(
        username="Alice", email="alice@example.jp", last_name="鈴木", language="ja", directory_id="a1"
    )
    olivia = people.create(username="olivia", is_superuser=True, is_staff=True, password=make_password("x" * 20))
    people.create(username="gone", is_active=False, left_directory_at=NOW)
    people.create(username="emergency", is_break_glass=True, password=make_password("y" * 20))
    for person, role, source in ((alice, "member", "directory"), (olivia, "admin", "manual")):
        model("accounts", "Membership").objects.create(
            user=person, tenant=research, role=role, source=source, since=NOW
        )
    model("accounts", "DirectoryGroup").objects.create(dn="cn=llm,dc=example", directory_id="g1", missing_since=NOW)
    model("accounts", "DirectoryState").objects.create(
        tried_at=NOW,
        succeeded_at=NOW,
        outcome={
            **{"people": 2, "left": 1, "returned": 0, "changed": 2, "name_taken": [], "unclear": []},
            **{"kept_operator": "", "missing_groups": [], "moved_groups": []},
        },
    )
    text, other, managing = make_secret(), make_secret(), make_secret(MANAGEMENT_PREFIX)

    def key(text: str, **more: Any) -> Any:
        digest = digest_of(text, settings.API_KEY_SECRET)
        return model("keys", "ApiKey").objects.create(
            prefix=text[:PREFIX_LENGTH], digest=digest, tenant=research, created_by=alice, **more
        )

    own = key(text, user=alice, name="laptop", networks=["127.0.0.0/8"], every_model=True, last_used_from="10.0.0.1")
    key(other, service="Dify", name="Dify", responsible=alice, replaces=own, key_class="batch", revoked_at=NOW)
    key(make_secret(), user=alice, name="playground", is_playground=True, expires_at=NOW)
    digest = digest_of(managing, settings.API_KEY_SECRET)
    model("keys", "ManagementKey").objects.create(
        user=alice, name="script", prefix=managing[:PREFIX_LENGTH], digest=digest, scopes=["keys:read"], expires_at=NOW
    )
    quotas = model("quotas", "Quota").objects
    quotas.create(tenant=research, unit="tokens", window="month", amount=10**9)
    quotas.create(key=own, unit="concurrent", window="", amount=7)
    quotas.create(default_for="tenant", unit="requests", window="minute", amount=600)
    asked = {"tenant": research, "user": alice, "asked_by": alice, "unit": "tokens", "window": "day", "asked_at": NOW}
    requests = model("quotas", "QuotaRequest").objects
    requests.create(**asked, previous_amount=5, amount=10**7, reason="評価", state="open")
    requests.create(
        **asked, previous_amount=5, amount=10**6, state="granted", granted=10**6, decided_by=olivia, decided_at=NOW
    )
    model("audit", "AuditEvent").objects.create(
        at=NOW, actor=olivia, actor_name="olivia", action="key.revoke", object_kind="key", object_id=str(own.pk),
        tenant=research, before={"revoked_at": None}, after={"revoked_at": NOW.isoformat()}, address="2001:db8::1",
    )  # fmt: skip
    model("notifications", "Notice").objects.create(
        user=alice, kind="key-expires", ref=f"{own.pk} 7", facts={"name": "laptop", "days": 7}, path="/keys/", at=NOW
    )
    model("apiproxy", "CatalogueChange").objects.create(revision=41, kind="key", object_id=own.pk)
    model("apiproxy", "CatalogueRevision").objects.update_or_create(pk=1, defaults={"number": 41})
    return text


def _fill_models(model: Callable[[str, str], Any]) -> None:
    host = model("modelregistry", "Host").objects.create(name="gpu-1", address="10.0.0.9", seen_at=NOW, claim="c")
    served = model("modelregistry", "ServedModel").objects
    chat = served.create(name="qwen-72b", engine="vllm", path="/models/qwen", host=host, gpus=[0, 1], tensor_parallel=2)
    plain = served.create(name="plain", engine="external", url="ENGINE")
    served.create(name="old", engine="llama.cpp", path="/models/old.gguf", enabled=False, retires_on=date(2026, 12, 31))
    model("modelregistry", "Alias").objects.create(name="default", model=chat)
    replica = model("modelregistry", "Replica").objects.create(
        host=host, model=chat, state="ready", url="http://10.0.0.9:30001", launcher="vllm", pid=4711, run_id="r",
        devices=[0, 1], predicted=PREDICTION,
        memory_by_device={"0": 1}, changed_at=NOW,
    )  # fmt: skip
    elsewhere = model("modelregistry", "Host").objects.create(name="elsewhere")
    model("modelregistry", "Replica").objects.create(
        host=elsewhere, model=plain, state="ready", url="ENGINE", changed_at=NOW
    )
    model("modelregistry", "HostReport").objects.create(host=host, devices=[], engines={"vllm": "0.32.0"}, at=NOW)
    model("modelregistry", "LogTail").objects.create(replica=replica, text="起動\n", at=NOW)
    model("modelregistry", "LogSubscription").objects.create(replica=replica, until=NOW)
    model("modelregistry", "Measurement").objects.create(
        fingerprint="f",
        launcher="vllm",
        version="0.32.0",
        device="H200",
        weights=1,
        cache=2,
        overhead=3,
        measured=6,
        at=NOW,
    )
    model("modelregistry", "FileReport").objects.create(model=chat, facts={"bytes": 1}, at=NOW)
    model("modelregistry", "WakeRequest").objects.create(model=chat, at=NOW)
    model("modelregistry", "HostBid").objects.create(host=host, model=chat, fits=True, free=1, at=NOW)
    model("modelregistry", "EngineTrial").objects.create(
        host=host,
        model=chat,
        launcher="vllm",
        version="0.32.0",
        stamp="s",
        state="proven",
        answer={"text": "4"},
        at=NOW,
    )
    model("modelregistry", "TaskRun").objects.create(name="pruneusage", claimed_at=NOW, claimed_by="p", succeeded=True)
    model("keys", "ModelAccess").objects.create(
        model=chat, tenant=model("accounts", "Tenant").objects.get(slug="research")
    )


def _fill_usage(model: Callable[[str, str], Any]) -> None:
    """Write one call a day and what it adds to the sums."""
    key = model("keys", "ApiKey").objects.get(name="laptop")
    owners = {"key": key, "tenant": key.tenant, "user": key.user}
    for day in range(DAYS):
        at = NOW - timedelta(days=day)
        tokens = {"prompt_tokens": 100 + day, "cached_tokens": 10, "completion_tokens": 20, "reasoning_tokens": 5}
        model("usage", "UsageRecord").objects.create(
            request_id=f"call-{day}", model="qwen-72b", endpoint="chat", started_at=at, first_token_ms=200,
            duration_ms=900, status="ok", end_user="", **tokens, **owners,
        )  # fmt: skip
        local = (at + timedelta(hours=9)).date()
        keys = {
            "hour": {"hour": at.replace(minute=0), "tenant": key.tenant},
            "day": {"day": local, "end_user": "", **owners},
            "month": {"month": local.replace(day=1), "end_user": "", **owners},
            "tenantday": {"day": local, "tenant": key.tenant},
        }
        for kind, which in keys.items():
            row, _created = model("usage", SUMS[kind]).objects.get_or_create(model="qwen-72b", **which)
            for name, value in {**tokens, "requests": 1, "generated_tokens": 19, "ttft_bucket_3": 1}.items():
                setattr(row, name, getattr(row, name) + value)
            row.save()
    model("usage", "UsageSetAside").objects.create(host="gw", lines=3, reported_at=NOW)
    model("usage", "RejectionHour").objects.create(
        hour=NOW.replace(minute=0), model="qwen-72b", code="rate", requests=9, **owners
    )


def _count(models: Any) -> dict[str, Any]:
    """Return the rows by model (lower-case label), and the tokens of each table of usage."""
    from django.db.models import Sum

    rows: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for model in models:
        label = model._meta.label_lower
        if model._meta.app_label in APPS and label not in GONE:
            rows[label] = model._default_manager.count()
            if any(field.name == "prompt_tokens" for field in model._meta.fields):
                tokens[label] = model._default_manager.aggregate(all=Sum("prompt_tokens"))["all"]
    return {"rows": rows, "tokens": tokens}


def count() -> dict[str, Any]:
    """Return what `fill` did, of today's schema, and read every row as today's code does."""
    from django.apps import apps

    for model in apps.get_models():
        for row in model._default_manager.all():
            str(row)
    return _count(apps.get_models())


def pages() -> list[str]:
    """Return the pages that need no number and do not answer an operator or a member."""
    from django.test import Client

    from portal.accounts.models import User
    from tests.walk import addresses

    failed = []
    for name in ("Alice", "olivia"):
        client = Client(SERVER_NAME="localhost", raise_request_exception=False)
        client.force_login(User.objects.get(username=name), "portal.accounts.backends.LocalBackend")
        for address in addresses():
            if not any(sign in address for sign in "<^("):
                answer = client.get(f"/{address}")
                if answer.status_code >= 500:
                    failed.append(f"{name}: {answer.status_code} {address}")
    return failed


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    django.setup()
    json.dump({"fill": fill, "count": count, "pages": pages}[sys.argv[1]](), sys.stdout)
