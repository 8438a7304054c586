"""What pages and the API show of the canary."""

from dataclasses import dataclass

from django.db import transaction
from django.db.models import Exists, Max, OuterRef, QuerySet
from django.utils import timezone

from modelregistry.models import Replica, ServedModel
from portal.accounts import permissions
from portal.accounts.models import User
from portal.audit import tracking
from portal.canary.judging import DRIFT
from portal.canary.labels import label_findings
from portal.canary.models import CanaryAnswer, CanaryRequest, CanaryRun
from portal.canary.notices import codes_of
from portal.canary.prompts import BY_NAME, Prompt
from portal.canary.running import DONE, predecessor_of, reference_of

Verdict = CanaryRun.Verdict
SHOWN = 10  # runs


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCanary:
    """The canary of one model: its last runs, newest first. `is_requested`: an operator waits for one."""

    runs: tuple[CanaryRun, ...]
    failing: tuple[CanaryRun, ...]
    is_requested: bool

    @property
    def rows(self) -> list[tuple[CanaryRun, str, list[str]]]:
        """Each run with the level of its state and what was found."""
        return [(run, level_of(run), describe_findings(run)) for run in self.runs]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPair:
    """One prompt, what was answered now, and what was before (see `compared_run`); None: not asked then."""

    prompt: Prompt
    now: CanaryAnswer
    before: CanaryAnswer | None
    traits: tuple[str, ...]  # of the answer, in words
    is_found: bool  # whether a finding names it

    @property
    def is_changed(self) -> bool:
        return self.before is not None and self.before.digest != self.now.digest


def read_canary(model: ServedModel) -> ModelCanary:
    """Read the canary of a model. Three queries."""
    runs = CanaryRun.objects.filter(model=model).select_related("accepted_by")
    return ModelCanary(
        runs=tuple(runs[:SHOWN]),
        failing=tuple(find_failing().filter(model=model)),
        is_requested=CanaryRequest.objects.filter(model=model).exists(),
    )


def find_failing() -> QuerySet[CanaryRun]:
    """Return the last runs of replicas that there are, if they failed, with their models. One query."""
    done = CanaryRun.objects.filter(verdict__in=DONE).order_by()
    newest = done.values("model", "host", "number").annotate(newest=Max("pk")).values("newest")
    replicas = Replica.objects.filter(model=OuterRef("model"), host__name=OuterRef("host"), index=OuterRef("number"))
    found = CanaryRun.objects.filter(Exists(replicas), pk__in=newest, verdict=Verdict.FAILED, model__enabled=True)
    return found.select_related("model").order_by("model__name", "host", "number")


def list_failing() -> list[tuple[CanaryRun, list[str]]]:
    """Return the failing replicas, each with what was found. One query."""
    return [(run, describe_findings(run)) for run in find_failing()]


def describe_findings(run: CanaryRun) -> list[str]:
    """Return in words what was found, or why the run was not done."""
    return [str(run.get_obstacle_display())] if run.obstacle else label_findings(codes_of(run))


def level_of(run: CanaryRun) -> str:
    """Return the colour of its state."""
    levels = {Verdict.PASSED: "fine", Verdict.CHANGED: "watch", Verdict.FAILED: "broken"}
    return levels.get(Verdict(run.verdict), "off")


def compared_run(run: CanaryRun) -> CanaryRun | None:
    """Return the run whose answers show what is wrong with those of this one; None for the reference itself."""
    if run.is_reference:
        return None
    return predecessor_of(run) if DRIFT in codes_of(run) else reference_of(run)


def pair_answers(run: CanaryRun) -> list[AnswerPair]:
    """Return the answers beside those before: those that findings name first. Three queries."""
    other = compared_run(run)
    before = {answer.prompt: answer for answer in other.answers.all()} if other else {}
    named = {name for finding in run.findings for name in finding["prompts"]}
    pairs = [
        AnswerPair(
            prompt=BY_NAME[answer.prompt],
            now=answer,
            before=before.get(answer.prompt),
            traits=tuple(label_findings(answer.traits)),
            is_found=answer.prompt in named,
        )
        for answer in run.answers.all()
        if answer.prompt in BY_NAME  # a prompt of another version of Madoguchi may be gone
    ]
    return sorted(pairs, key=lambda pair: not pair.is_found)


def request_run(by: User | None, model: ServedModel) -> None:
    """Have the model asked within minutes. Does nothing for one that is no chat model."""
    permissions.check_access(by)
    if model.task != ServedModel.Task.CHAT:
        return
    with transaction.atomic():
        _, created = CanaryRequest.objects.get_or_create(model=model, defaults={"at": timezone.now()})
        if created:
            tracking.record_event("model.canary-request", model, "model")
