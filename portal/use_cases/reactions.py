"""What people do with use cases: open, try, find helpful, comment on.

Who opens or tries a case counts once a day, however often; its author and programs do not. So that this can be known
and no row says who it was, a keyed digest of the person, the case and the day is kept until the next day: the task
`clearusecasecounts` deletes it within an hour. Nothing that was filled in is kept.
"""

from datetime import date
from statistics import median

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _

from portal.accounts.models import User
from portal.audit import tracking
from portal.keys.secret import digest_of
from portal.use_cases.content import UseCaseRefused
from portal.use_cases.gallery import Publisher
from portal.use_cases.models import (
    MAX_COMMENT,
    MOST_MINUTES,
    CountedToday,
    HelpedMark,
    UseCase,
    UseCaseComment,
)
from portal.web.row_locks import lock_row

# Comments of one person on one case: a flood of them would bury those of others.
MOST_COMMENTS = 20


def count_opened(by: User, case: UseCase) -> None:
    """Count that this person opened the case, once a day. Its author is not counted."""
    if _is_first_today(by, case, "opened"):
        UseCase.objects.filter(pk=case.pk).update(opened=F("opened") + 1)


def count_tried(by: User, case: UseCase) -> None:
    """Count that this person tried the case, once a day. Its author is not counted."""
    if _is_first_today(by, case, "tried"):
        UseCase.objects.filter(pk=case.pk).update(tried=F("tried") + 1)


def _is_first_today(by: User, case: UseCase, what: str) -> bool:
    if case.author_id == by.pk:
        return False
    day = timezone.localdate()
    digest = digest_of(f"use-case:{what}:{case.pk}:{by.pk}:{day}", settings.API_KEY_SECRET)
    _row, created = CountedToday.objects.get_or_create(digest=digest, defaults={"day": day})
    return created


def clear_counted(today: date) -> int:
    """Delete the digests of earlier days, which nothing needs any more; return how many."""
    return CountedToday.objects.filter(day__lt=today).delete()[0]


def mark_helped(by: User, case: UseCase, minutes: int | None) -> None:
    """Note that the case helped this person; a second time replaces the first. Raises UseCaseRefused."""
    if minutes is not None and not 1 <= minutes <= MOST_MINUTES:
        raise UseCaseRefused(_("Give the minutes as a number from 1 to %(most)d.") % {"most": MOST_MINUTES})
    if case.author_id == by.pk:
        raise UseCaseRefused(_("You wrote this use case: only marks of others count."), code="own")
    with transaction.atomic():
        HelpedMark.objects.update_or_create(use_case=case, user=by, defaults={"minutes": minutes})
        sum_up(case)


def unmark_helped(by: User, case: UseCase) -> None:
    with transaction.atomic():
        HelpedMark.objects.filter(use_case=case, user=by).delete()
        sum_up(case)


def sum_up(case: UseCase) -> None:
    """Compute what the case's marks say, without one of its author from before these were refused."""
    author = UseCase.objects.select_for_update().get(pk=case.pk).author_id
    marks = HelpedMark.objects.filter(use_case=case)
    said = list((marks.exclude(user=author) if author else marks).values_list("minutes", flat=True))
    known = [minutes for minutes in said if minutes is not None]
    UseCase.objects.filter(pk=case.pk).update(
        helped=len(said), minutes_said=len(known), minutes=round(median(known)) if known else None
    )


def add_comment(by: User, case: UseCase, text: str) -> UseCaseComment:
    """Add a comment. Raises UseCaseRefused."""
    text = text.strip()
    if not text or len(text) > MAX_COMMENT or "\0" in text:
        raise UseCaseRefused(_("A comment has 1 to %(most)d characters.") % {"most": MAX_COMMENT})
    with transaction.atomic():
        # Comments that are sent at the same time are counted one after another.
        lock_row(UseCase, case.pk)
        if UseCaseComment.objects.filter(use_case=case, author=by).count() >= MOST_COMMENTS:
            raise UseCaseRefused(
                _("You have written %(most)d comments here, the most there may be.") % {"most": MOST_COMMENTS}
            )
        return UseCaseComment.objects.create(use_case=case, author=by, text=text)


def delete_comment(by: User, comment: UseCaseComment) -> None:
    """Delete a comment of one's own, or one on a case that one publishes. Raises PermissionDenied."""
    if comment.author_id != by.pk and not Publisher(by).may_publish(comment.use_case):
        raise PermissionDenied
    with transaction.atomic():
        if comment.author_id != by.pk:
            case = comment.use_case
            tracking.record_event(
                "use-case.comment",
                case,
                "use-case",
                before={"author": comment.author.get_username()},
                tenant=case.tenant,
            )
        comment.delete()
