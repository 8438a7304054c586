"""Tell people something, once. Where it shows, and whether a mail follows, is no matter of who tells."""

import json
from collections.abc import Iterable
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from portal.accounts.models import User
from portal.notifications.models import Notice
from portal.notifications.types import KINDS


def notify(users: Iterable[User], kind: str, ref: str, path: str = "", **facts: Any) -> None:
    """Each of `users` finds the notice among theirs, within the caller's transaction. Told before: nothing happens.

    `kind` is one of kinds.KINDS, which says what `file_facts` it needs; texts, numbers and aware times (see there).
    `ref` (100 characters) tells two of a kind apart, as "mdg_AbCdEfGh 7". `path`: of the page about it, from "/".
    Raises ValueError for an unknown kind and for facts that are missing: when it is told, not when it is read.
    """
    if kind not in KINDS:
        raise ValueError(f"no such kind of notice: {kind}")
    if missing := KINDS[kind].needs - facts.keys():
        raise ValueError(f"a notice of kind {kind} needs {', '.join(sorted(missing))}")
    stored = json.loads(json.dumps(facts, cls=DjangoJSONEncoder))
    Notice.objects.bulk_create(
        # By id: the same order everywhere, so that two who tell the same people do not wait for each other
        [Notice(user_id=pk, kind=kind, ref=ref, path=path, facts=stored) for pk in sorted({user.pk for user in users})],
        ignore_conflicts=True,
    )
