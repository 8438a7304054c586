"""Record feedback on a request, from the gateway and from the playground, and join it with the request's usage.

A request is named by its id alone, so who may say something about it follows from its usage: a person about their own
requests, a service key about those of its tenant's services. For everyone else the request does not exist.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from modelregistry.models import Alias
from portal.accounts.models import Tenant, User
from portal.feedback.models import MAX_COMMENT, Feedback
from portal.usage.models import UsageRecord
from portal.use_cases import gallery
from portal.use_cases.models import UseCase, UseCaseVersion
from portal.web.refusals import Refused
from portal.web.row_locks import lock_row

RECENT = timedelta(days=7)  # since the request: later its answer is forgotten
# In an hour, of a person or of a tenant's services: a thumb for each answer is fewer, a script that runs wild is not.
MOST_IN_AN_HOUR = 1000
# Whose usage is not recorded yet, at a time. It comes within a second unless the database was away.
MOST_WAITING = 200
WAIT = timedelta(days=2)  # for usage that never comes
AT_ONCE = 1000  # rows that are joined by one run


class FeedbackRefused(Refused):
    """The feedback cannot be taken. `code`: "unknown", "old", "many" or "invalid"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFeedback:
    """What a caller says. `use_case`: an id, or 0; `model`: the name under which it was called, or ""."""

    request_id: str
    score: int
    comment: str = ""
    model: str = ""
    use_case: int = 0
    use_case_version: int = 0


def record_feedback(
    given: GivenFeedback, *, user_id: int | None, tenant_id: int | None, key_id: int | None = None, now: datetime
) -> bool:
    """Store the feedback; return whether its request's usage is known. Raises FeedbackRefused.

    `tenant_id` None: of a person who gives it on a page, whose request may be of any of their tenants.
    """
    check_given(given)
    record = UsageRecord.objects.filter(request_id=given.request_id).first()
    if record is not None:
        if not is_own(record, user_id, tenant_id):
            raise FeedbackRefused(_("There is no such request of yours."), code="unknown")
        if record.started_at < now - RECENT:
            sentence = _("This request is older than %(days)d days.")
            raise FeedbackRefused(sentence % {"days": RECENT.days}, code="old")
        tenant_id = record.tenant_id
    elif tenant_id is None:
        raise FeedbackRefused(_("There is no such request of yours."), code="unknown")
    owner: dict[str, Any] = {"user_id": user_id} if user_id is not None else {"user_id": None, "tenant_id": tenant_id}
    with transaction.atomic():
        _lock_owner(user_id, tenant_id)
        is_new = not Feedback.objects.filter(request_id=given.request_id, **owner).exists()
        if is_new:
            check_amount(owner, is_waiting=record is None, now=now)
        values = {
            "tenant_id": tenant_id,
            "key_id": key_id,
            "score": given.score,
            "comment": given.comment.strip(),
            "at": now,
            **describe_call(given, record),
            **find_use_case(given, user_id, tenant_id),
        }
        Feedback.objects.update_or_create(request_id=given.request_id, **owner, defaults=values)
    return record is not None


def check_given(given: GivenFeedback) -> None:
    """Raise FeedbackRefused for what no page of ours and no careful client sends."""
    fits = given.request_id.isascii() and given.request_id.isprintable() and 0 < len(given.request_id) <= 40
    if not fits or given.score not in Feedback.Score.values or "\0" in given.comment + given.model:
        raise FeedbackRefused(_("This feedback cannot be read."), code="invalid")
    if len(given.comment) > MAX_COMMENT or len(given.model) > 100:
        raise FeedbackRefused(_("A comment has at most %(most)d characters.") % {"most": MAX_COMMENT}, code="invalid")


def is_own(record: UsageRecord, user_id: int | None, tenant_id: int | None) -> bool:
    if user_id is not None:
        return record.user_id == user_id
    return record.user_id is None and record.tenant_id == tenant_id


def _lock_owner(user_id: int | None, tenant_id: int | None) -> None:
    """Let others wait that count the feedback of this person, or of the tenant's services."""
    if user_id is not None:
        lock_row(User, user_id)
    elif tenant_id is not None:
        lock_row(Tenant, tenant_id)


def check_amount(owner: dict[str, Any], *, is_waiting: bool, now: datetime) -> None:
    """Raise FeedbackRefused for more than a person or a service says in an hour. Two queries at most.

    After `_lock_owner`, or what is sent at the same time would not be counted.
    """
    rows = Feedback.objects.filter(**owner)
    if rows.filter(at__gt=now - timedelta(hours=1)).count() >= MOST_IN_AN_HOUR:
        raise FeedbackRefused(_("Too much feedback within an hour."), code="many")
    if is_waiting and rows.filter(model="", at__gt=now - WAIT).count() >= MOST_WAITING:
        raise FeedbackRefused(_("Too much feedback for requests that are not recorded yet."), code="many")


def describe_call(given: GivenFeedback, record: UsageRecord | None) -> dict[str, Any]:
    """Return the model's own name, and the alias under which it was called if it is one of the model's."""
    if record is None:
        return {"model": "", "called_as": given.model}
    return {"model": record.model, "called_as": find_alias(given.model, record.model)}


def find_alias(name: str, model: str) -> str:
    return name if name and Alias.objects.filter(name=name, model__name=model).exists() else ""


def find_use_case(given: GivenFeedback, user_id: int | None, tenant_id: int | None) -> dict[str, Any]:
    """Return the use case that the request came from, if there is such a version and its caller may read the case."""
    if given.use_case and given.use_case_version:
        known = UseCaseVersion.objects.filter(use_case=given.use_case, number=given.use_case_version)
        case = readable_cases(user_id, tenant_id).filter(pk=given.use_case).first()
        if case is not None and known.exists():
            return {"use_case": case, "use_case_version": given.use_case_version}
    return {"use_case": None, "use_case_version": None}


def readable_cases(user_id: int | None, tenant_id: int | None) -> QuerySet[UseCase]:
    """Return the cases that a person may read, or those that a tenant's services may call."""
    if user_id is None:
        return UseCase.objects.exclude(current=None).filter(Q(is_company_wide=True) | Q(tenant=tenant_id))
    person = User.objects.filter(pk=user_id).first()
    return gallery.readable(person) if person else UseCase.objects.none()


def join_waiting(now: datetime | None = None) -> int:
    """Join feedback with usage that was recorded later, and return how many rows. What never fits is deleted."""
    now = now or timezone.now()
    joined = 0
    recorded = Exists(UsageRecord.objects.filter(request_id=OuterRef("request_id")))
    # Only those, so that ids which no request ever had keep none of the others waiting.
    waiting = list(Feedback.objects.filter(recorded, model="").order_by("at")[:AT_ONCE])
    records = UsageRecord.objects.filter(request_id__in=[row.request_id for row in waiting])
    by_id = {record.request_id: record for record in records}
    for row in waiting:
        record = by_id.get(row.request_id)
        if record is None:
            continue
        if not is_own(record, row.user_id, row.tenant_id):
            row.delete()
            continue
        row.model, row.called_as = record.model, find_alias(row.called_as, record.model)
        row.tenant_id = record.tenant_id
        row.save(update_fields=["model", "called_as", "tenant"])
        joined += 1
    Feedback.objects.filter(~recorded, model="", at__lt=now - WAIT).delete()
    return joined
