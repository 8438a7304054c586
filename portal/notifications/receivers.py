"""Store the notices that other packages request with `notify`."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from portal.accounts.models import User
from portal.notifications.models import Notice
from portal.notifications.types import KINDS
from portal.notifications.webhooks import OPERATOR_KINDS, queue_messages


def record_notification(
    users: Iterable[User], kind: str, ref: str, path: str, facts: Mapping[str, Any], **_: Any
) -> None:
    """Store one row for each person, except for people who have it already. See `web.notify`."""
    if kind not in KINDS:
        raise ValueError(f"no such kind of notice: {kind}")
    if missing := KINDS[kind].required - facts.keys():
        raise ValueError(f"a notice of kind {kind} needs {', '.join(sorted(missing))}")
    stored = json.loads(json.dumps(facts, cls=DjangoJSONEncoder))
    users = list(users)
    if kind in OPERATOR_KINDS and any(user.is_staff for user in users):
        queue_messages(kind, ref, path, stored, timezone.now())
    Notice.objects.bulk_create(
        # By id: in the same order everywhere, or two processes that notify the same people could deadlock.
        [Notice(user_id=pk, kind=kind, ref=ref, path=path, facts=stored) for pk in sorted({user.pk for user in users})],
        ignore_conflicts=True,
    )
