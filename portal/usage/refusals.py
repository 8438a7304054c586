"""The last refused calls, one by one: kept for some days, so that their callers can look up why."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from portal.keys.models import ApiKey
from portal.usage.models import RefusedRequest

MOST = 200_000  # rows that are left when old ones are deleted: some 50 MB
BATCH = 5000  # rows of one statement
KEY_REVOKED, KEY_EXPIRED, KEY_STOPPED = "key_revoked", "key_expired", "key_stopped"
KEY_REFUSED = "invalid_api_key"  # the code


def add_refusals(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write refused calls. A row has RefusedRequest's columns by name, `at` aware, the key by number or by `digest`.

    A call whose digest is of none of our keys is left out, as is a request id that already exists. Two queries.
    """
    refused = [row for row in rows if row["code"] == KEY_REFUSED]
    numbers, digests = [row["key"] for row in refused if row["key"]], [row["digest"] for row in refused]
    keys = {key.pk: key for key in ApiKey.objects.filter(pk__in=numbers)} if numbers else {}
    by_digest = {key.digest: key for key in ApiKey.objects.filter(digest__in=digests)} if any(digests) else {}
    made = []
    for row in rows:
        facts = {name: value for name, value in row.items() if name not in ("key", "digest", "tenant", "user")}
        owner = {"key_id": row["key"], "tenant_id": row["tenant"], "user_id": row["user"]}
        key = keys.get(row["key"]) or by_digest.get(row["digest"])
        if key is not None and row["code"] == KEY_REFUSED:
            owner = {"key_id": key.pk, "tenant_id": key.tenant_id, "user_id": key.user_id}
            facts["reason"] = name_of_end(key, row["at"])
        if owner["key_id"] is not None:
            made.append(RefusedRequest(**facts, **owner))
    RefusedRequest.objects.bulk_create(made, batch_size=BATCH, ignore_conflicts=True)


def name_of_end(key: ApiKey, at: datetime) -> str:
    """Return why a key did not work at this time. It may have been revoked a moment later than the gateway's clock."""
    if key.revoked_at is not None:
        return KEY_REVOKED
    if key.expires_at is not None and key.expires_at <= max(at, timezone.now()):
        return KEY_EXPIRED
    return KEY_STOPPED


def prune_refusals(now: datetime) -> int:
    """Delete what is older than REFUSALS_KEPT_DAYS, and the oldest of more than MOST; return how many."""
    pruned = _delete_before(now - timedelta(days=settings.REFUSALS_KEPT_DAYS))
    newest = RefusedRequest.objects.order_by("-at").values_list("at", flat=True)
    oldest_kept = newest[MOST - 1 : MOST].first() if RefusedRequest.objects.count() > MOST else None
    return pruned + (_delete_before(oldest_kept) if oldest_kept is not None else 0)


def _delete_before(moment: datetime) -> int:
    deleted, old = 0, RefusedRequest.objects.filter(at__lt=moment)
    while batch := list(old.values_list("pk", flat=True)[:BATCH]):
        deleted += RefusedRequest.objects.filter(pk__in=batch).delete()[0]
    return deleted
