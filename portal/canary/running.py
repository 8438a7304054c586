"""One run of the canary: puts the prompts to a replica one after another, stores what is answered, judges it.

It may be interrupted anywhere: every answer is stored as it comes, and a run that was left is closed by the next one.
What happens when a neighbour is away: nothing is said about the model; the run is "not done" and is due again 15
minutes later. That holds for the gateway, the queue and quotas, an engine that stops or restarts meanwhile, and Redis,
without which the gateway admits by its own counts. Without the database nothing runs, and the task is tried again.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Protocol

from django.db import transaction
from django.db.models import Count, Exists, Max, OuterRef, Q, QuerySet

from modelregistry.models import Replica
from portal.accounts.models import User
from portal.audit import tracking
from portal.canary.asking import NotDone
from portal.canary.due import CanaryTarget, Due, targets
from portal.canary.judging import Answer, IsLoop, Judgement, Remembered, judge
from portal.canary.models import MAX_TEXT, CanaryAnswer, CanaryRequest, CanaryRun
from portal.canary.notices import notify_of
from portal.canary.prompts import PROMPTS, VERSION, Prompt

Verdict, Obstacle, Reason = CanaryRun.Verdict, CanaryRun.Obstacle, CanaryRun.Reason

KEPT = 30  # runs of each replica beside the reference: two weeks, with a restart a day
SPEEDS = 7  # healthy runs of which the usual speed is made
HEALTHY = (Verdict.PASSED, Verdict.CHANGED)
DONE = (*HEALTHY, Verdict.FAILED)
MOST_ERRORS = 3  # in a row: no more is asked then
# Nor after so long. What was answered is judged: a run that never ended would be tried again and again.
MOST_TIME = timedelta(minutes=30)
# Requests of others that an engine works on, from which on its speed says nothing. One is ours, seen late.
BUSY = 2


class Asks(Protocol):
    def ask(self, model: str, replica: int, prompt: Prompt) -> Answer: ...


def run_canary(
    due: Due, asker: Asks, *, clock: Callable[[], datetime], is_loop: IsLoop, begun: CanaryRun | None = None
) -> CanaryRun:
    """Run the canary on one replica and return the ended run, `begun` if it was begun before.

    Blocks for minutes. Raises django.db.Error.
    """
    target = due.target
    run = begun or begin_run(due, clock())
    try:
        answers, busy = _ask_all(run, target, asker, clock)
        if not is_as_before(target):
            raise NotDone(Obstacle.ENGINE, "it is another one now")
    except NotDone as obstacle:
        return end_run(run, clock(), Verdict.NOT_DONE, obstacle=obstacle.obstacle)
    except (KeyboardInterrupt, SystemExit):
        end_run(run, clock(), Verdict.NOT_DONE, obstacle=Obstacle.INTERRUPTED)
        raise
    judgement = judge(
        answers,
        reference=remember(reference_of(run)),
        before=remember(predecessor_of(run)),
        speeds=[one.tokens_per_second or 0.0 for one in healthy_runs(run)[:SPEEDS]],
        busy=busy,
        is_loop=is_loop,
    )
    return _conclude(run, judgement, clock())


def begin_run(due: Due, now: datetime) -> CanaryRun:
    """Store a run that begins, and close those of the replica that were left because their process was killed."""
    target = due.target
    left = CanaryRun.objects.filter(
        model=target.model_id, host=target.host, number=target.number, verdict=Verdict.RUNNING
    )
    left.update(verdict=Verdict.NOT_DONE, obstacle=Obstacle.INTERRUPTED, ended_at=now)
    return CanaryRun.objects.create(
        model_id=target.model_id,
        host=target.host,
        number=target.number,
        replica_id=target.replica_id,
        run_id=target.run_id,
        launcher=target.launcher,
        version=target.version,
        files=target.files,
        prompts=VERSION,
        reason=due.reason,
        began_at=now,
        seen_at=now,
    )


def _ask_all(
    run: CanaryRun, target: CanaryTarget, asker: Asks, clock: Callable[[], datetime]
) -> tuple[dict[str, Answer], bool]:
    """Return the answers, and whether the engine had other work for most of the time. Raises NotDone."""
    answers: dict[str, Answer] = {}
    crowded = errors = 0
    for prompt in PROMPTS:
        answer = asker.ask(target.model, target.replica_id, prompt)
        answers[prompt.name] = answer
        _store(run, prompt, answer)
        CanaryRun.objects.filter(pk=run.pk).update(seen_at=clock())
        crowded += others_running(target.replica_id) >= BUSY
        errors = errors + 1 if answer.error else 0
        if errors >= MOST_ERRORS or clock() - run.began_at > MOST_TIME:
            break
    return answers, crowded * 2 >= len(answers)


def _store(run: CanaryRun, prompt: Prompt, answer: Answer) -> None:
    CanaryAnswer.objects.create(
        run=run,
        prompt=prompt.name,
        text=answer.text[:MAX_TEXT],
        digest=answer.digest,
        finish=answer.finish,
        error=answer.error,
        tokens=answer.tokens,
        first_token_ms=answer.first_token_ms,
        duration_ms=answer.duration_ms,
    )


def others_running(replica: int) -> int:
    """Return how many requests the engine works on, as its supervisor last saw it."""
    live = Replica.objects.filter(pk=replica).values_list("live", flat=True).first() or {}
    return (live.get("running") or 0) + (live.get("waiting") or 0)


def is_as_before(target: CanaryTarget) -> bool:
    """Return whether the replica still answers, and is the same engine."""
    return any(
        (one.replica_id, one.run_id, one.version) == (target.replica_id, target.run_id, target.version)
        for one in targets(target.model)
    )


def _conclude(run: CanaryRun, judgement: Judgement, now: datetime) -> CanaryRun:
    """Store the judgement.

    The first run that is healthy and complete becomes the reference, and so does the first one of new prompts.
    """
    reference = reference_of(run)
    for answer in run.answers.all():
        answer.traits = sorted(judgement.traits.get(answer.prompt, ()))
        answer.save(update_fields=["traits"])
    run.findings = [asdict(finding) for finding in judgement.findings]
    run.changed = len(judgement.changed)
    run.tokens_per_second = judgement.tokens_per_second
    run.usual_tokens_per_second = judgement.usual_tokens_per_second
    if judgement.findings:
        verdict = Verdict.FAILED
    elif reference is not None and reference.prompts == run.prompts and is_changed(run, reference):
        verdict = Verdict.CHANGED
    else:
        verdict = Verdict.PASSED
    with transaction.atomic():
        is_first = reference is None or reference.prompts != run.prompts
        if verdict == Verdict.PASSED and is_first and is_complete(run):
            make_reference(run)
        end_run(run, now, verdict)
        notify_of(run)
    return run


def is_changed(run: CanaryRun, reference: CanaryRun) -> bool:
    """Return whether most answers differ from a reference of other conditions, so that operators should look."""
    return conditions(run) != conditions(reference) and run.changed * 2 > len(PROMPTS)


def conditions(run: CanaryRun) -> tuple[str, str, str, int]:
    """Return what explains changed answers if it has changed."""
    return run.launcher, run.version, run.files, run.prompts


def end_run(run: CanaryRun, now: datetime, verdict: CanaryRun.Verdict, *, obstacle: str = "") -> CanaryRun:
    run.ended_at, run.seen_at, run.verdict, run.obstacle = now, now, verdict, obstacle
    run.save()
    if verdict != Verdict.NOT_DONE:
        CanaryRequest.objects.filter(model=run.model_id, at__lte=run.began_at).delete()
    prune(run.model_id, run.host, run.number)
    return run


def accept(run: CanaryRun, by: User) -> None:
    """Take the run's answers as right: later ones are compared with them. Raises NotComplete."""
    if not may_accept(run):
        raise NotComplete
    with transaction.atomic():
        make_reference(run)
        run.verdict, run.accepted_by = Verdict.PASSED, by
        run.save(update_fields=["verdict", "accepted_by"])
        tracking.record_event("model.canary", run.model, "model", after={"canary_run": run.pk})


class NotComplete(Exception):
    """The run was cut short or has errors among its answers: nothing could be compared with these."""


def may_accept(run: CanaryRun) -> bool:
    """Return whether the run's answers may become those that later ones are compared with. One query at most."""
    return run.verdict in DONE and is_complete(run)


def make_reference(run: CanaryRun) -> None:
    """Let later runs be compared with this one. Call it in a transaction."""
    CanaryRun.objects.filter(model=run.model_id, host=run.host, is_reference=True).update(is_reference=False)
    run.is_reference = True
    run.save(update_fields=["is_reference"])


# --- What a run is compared with


def runs_beside(run: CanaryRun) -> QuerySet[CanaryRun]:
    """Return the runs of the same model on the same host, newest first."""
    return CanaryRun.objects.filter(model=run.model_id, host=run.host).exclude(pk=run.pk)


def complete(runs: QuerySet[CanaryRun]) -> QuerySet[CanaryRun]:
    """Return those of the runs that have an answer to each prompt, and no error.

    How many prompts another version had is not known: of its runs only those with errors are left out.
    """
    errors = CanaryAnswer.objects.filter(run=OuterRef("pk")).exclude(error="")
    counted = runs.annotate(answered=Count("answers"))
    return counted.filter(~Exists(errors), Q(answered=len(PROMPTS)) | ~Q(prompts=VERSION), answered__gt=0)


def is_complete(run: CanaryRun) -> bool:
    return complete(CanaryRun.objects.filter(pk=run.pk)).exists()


def reference_of(run: CanaryRun) -> CanaryRun | None:
    """Return the reference, unless it is one that older versions made of a run that was cut short."""
    return complete(runs_beside(run).filter(is_reference=True)).first()


def predecessor_of(run: CanaryRun) -> CanaryRun | None:
    """Return the run whose answers this one should repeat: of the same engine, files and prompts, and healthy."""
    same = {"launcher": run.launcher, "version": run.version, "files": run.files, "prompts": run.prompts}
    found = complete(runs_beside(run).filter(**same, verdict__in=HEALTHY))
    return found.filter(is_reference=True).first() or found.last()


def healthy_runs(run: CanaryRun) -> QuerySet[CanaryRun]:
    """Return the healthy runs with a speed of the same replica since the reference, newest first.

    Since the reference: operators who accept a slower one want no more of the old speed.
    """
    reference = reference_of(run)
    found = runs_beside(run).filter(number=run.number, verdict__in=HEALTHY, tokens_per_second__isnull=False)
    return found.filter(pk__gte=reference.pk) if reference else found


def remember(run: CanaryRun | None) -> dict[str, Remembered]:
    if run is None:
        return {}
    return {one.prompt: Remembered(digest=one.digest, traits=frozenset(one.traits)) for one in run.answers.all()}


# --- Keeping order


def prune(model: int, host: str, number: int) -> None:
    """Delete all but the last runs, the reference, and of runs that were not done all but the last one."""
    runs = CanaryRun.objects.filter(model=model, host=host, number=number, is_reference=False)
    undone = runs.filter(verdict=Verdict.NOT_DONE)
    newest = undone.aggregate(newest=Max("pk"))["newest"]
    undone.filter(pk__lt=newest or 0).delete()
    kept = list(runs.values_list("pk", flat=True)[:KEPT])
    if len(kept) == KEPT:
        runs.filter(pk__lt=kept[-1]).delete()
