"""Put each published use case with its example values to a model, once a night, to see whether it still answers.

Only models that answer now are asked, through the gateway and as batch calls of Madoguchi's own key: none is woken for
it. What happens when a neighbour is away is as with the canary: nothing is said about the case, and it is tried again
half an hour later. Without nights (MADOGUCHI_CANARY_HOUR off) nothing is asked. Answers are not stored.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from django.db.models import F, Q

from modelregistry.models import Alias
from portal.canary.asking import NotDone
from portal.canary.due import CanaryTarget, nightfall, targets
from portal.canary.judging import Answer
from portal.canary.models import CanaryRun
from portal.use_cases.models import CheckSession, UseCase, UseCaseCheck, UseCaseText
from portal.use_cases.samples import make_body
from portal.use_cases.variables import example_values

Outcome, Obstacle = UseCaseCheck.Outcome, CanaryRun.Obstacle
IsLoop = Callable[[str, int], bool]

KEY = "use-cases"  # the name of the key
MAX_TOKENS = 500  # of an answer: enough to see that it is one
RETRY = timedelta(minutes=30)  # after a try that came to no result
MOST_TIME = timedelta(minutes=40)  # of one session; what is left is due at the next one
MOST_CASES = 200  # of one session
SILENT = timedelta(minutes=15)  # after so long a session was interrupted: one answer may take 10 minutes
# Of the beginning of an answer that says no. A long one is an answer all the same.
REFUSING = re.compile(
    r"I(?:['’]m| am) (?:sorry|unable)|I (?:can(?:no|['’])t|cannot) (?:help|assist|comply|fulfil)|As an AI"
    r"|申し訳(?:ございません|ありません|ない)[^。]{0,40}(?:できません|できかねます|お答え)|お答えできません|お手伝いできません",
    re.IGNORECASE,
)
REFUSAL_LENGTH = 300  # characters


class PutsQuestions(Protocol):
    def ask(self, model: str, replica: int, prompt: "ExampleQuestion") -> Answer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleQuestion:
    """A use case with its example values, as `canary.asking` puts it."""

    messages: list[dict[str, str]]
    max_tokens: int = MAX_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class DueCheck:
    """A case to check, and where."""

    case: UseCase
    target: CanaryTarget


def find_due_checks(now: datetime) -> list[DueCheck]:
    """Return the cases to check now, those that have waited longest first. At most seven queries."""
    night = nightfall(now)
    if night is None:
        return []
    ready = targets()
    if not ready:
        return []
    done = Q(check_row__checked_at__gte=night, check_row__version=F("current"))
    resting = Q(check_row__tried_at__gt=now - RETRY, check_row__tried_at__lte=now)
    cases = UseCase.objects.filter(retired_at=None, current__isnull=False).exclude(done).exclude(resting)
    cases = (
        cases.select_related("current")
        .prefetch_related("current__texts")
        .order_by(F("check_row__tried_at").asc(nulls_first=True), "pk")
    )
    names = names_of_targets(ready)
    found = ((case, find_target(case, ready, names)) for case in cases[:MOST_CASES])
    return [DueCheck(case=case, target=target) for case, target in found if target is not None]


def names_of_targets(ready: Sequence[CanaryTarget]) -> dict[str, str]:
    """Return the model's own name by each alias of a model that answers. One query."""
    return dict(Alias.objects.filter(model__name__in={one.model for one in ready}).values_list("name", "model__name"))


def find_target(case: UseCase, ready: Sequence[CanaryTarget], names: dict[str, str]) -> CanaryTarget | None:
    """Return where to ask; None: the case's model does not answer now. For any model, the first by name."""
    wanted = case.current.model if case.current else ""
    model = names.get(wanted, wanted)
    fitting = [one for one in ready if not model or one.model == model]
    return min(fitting, key=lambda one: (one.model, one.replica_id), default=None)


def question_of(text: UseCaseText) -> ExampleQuestion:
    return ExampleQuestion(messages=make_body(text, example_values(text.fields))["messages"])


def check_case(due: DueCheck, asker: PutsQuestions, *, clock: Callable[[], datetime], is_loop: IsLoop) -> UseCaseCheck:
    """Ask, judge and store the result. Blocks for minutes. Raises django.db.Error."""
    version = due.case.current
    assert version is not None
    tried = {"tried_at": clock(), "obstacle": ""}
    try:
        answer = asker.ask(due.target.model, due.target.replica_id, question_of(version.text_in("ja")))
    except NotDone as problem:
        tried["obstacle"] = problem.obstacle
        row, _ = UseCaseCheck.objects.update_or_create(
            use_case=due.case, defaults=tried, create_defaults={**tried, "version": version}
        )
        return row
    result = {
        **tried,
        "version": version,
        "outcome": judge_answer(answer, is_loop),
        "checked_at": clock(),
        "model": due.target.model,
        "tokens": answer.tokens,
        "duration_ms": answer.duration_ms,
    }
    row, _ = UseCaseCheck.objects.update_or_create(use_case=due.case, defaults=result)
    return row


def judge_answer(answer: Answer, is_loop: IsLoop) -> str:
    """Return what is wrong with an answer, or FINE."""
    text = answer.text.strip()
    if answer.error:
        return Outcome.REFUSED if answer.error[:1] == "4" else Outcome.FAILED
    if not text:
        return Outcome.EMPTY
    if is_loop(answer.text, answer.tokens):
        return Outcome.LOOPING
    if answer.finish == "content_filter" or (len(text) <= REFUSAL_LENGTH and REFUSING.search(text[:120])):
        return Outcome.REFUSED
    return Outcome.FINE


# --- one session at a time, on whichever host


def begin_session(now: datetime) -> bool:
    """Return whether this process may check now: no other one does."""
    CheckSession.objects.get_or_create(pk=1)
    free = CheckSession.objects.filter(
        Q(seen_at=None) | Q(seen_at__lt=now - SILENT) | Q(seen_at__gt=now + SILENT), pk=1
    )
    return bool(free.update(seen_at=now, began_at=now))


def note_progress(now: datetime) -> None:
    CheckSession.objects.filter(pk=1).update(seen_at=now)


def end_session() -> None:
    CheckSession.objects.filter(pk=1).update(seen_at=None)


def check_all(
    found: Sequence[DueCheck], asker: PutsQuestions, *, clock: Callable[[], datetime], is_loop: IsLoop
) -> list[UseCaseCheck]:
    """Check these cases one after another, until the gateway is away or MOST_TIME is over."""
    began, rows = clock(), []
    for due in found:
        row = check_case(due, asker, clock=clock, is_loop=is_loop)
        rows.append(row)
        now = clock()
        note_progress(now)
        if row.obstacle in (Obstacle.GATEWAY, Obstacle.KEY) or not began <= now <= began + MOST_TIME:
            break
    return rows
