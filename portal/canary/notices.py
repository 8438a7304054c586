"""Notifies operators of a model that fails, once for each kind of failure, and when it is well again."""

from portal.accounts.permissions import operators
from portal.canary.models import CanaryRun
from portal.web.notify import notify

Verdict = CanaryRun.Verdict


def notify_of(run: CanaryRun) -> None:
    """Notify operators of a run that was done, if it is news about the model."""
    before = latest_runs(run.model_id, but=run.pk)
    known = {code for one in before if one.verdict == Verdict.FAILED for code in codes_of(one)}
    if run.verdict == Verdict.FAILED:
        if not known.issuperset(codes_of(run)):
            _notify("canary-failed", run, findings=codes_of(run))
        return
    mine = next((one for one in before if (one.host, one.number) == (run.host, run.number)), None)
    others_fail = any(one.verdict == Verdict.FAILED for one in before if one is not mine)
    if mine is not None and mine.verdict == Verdict.FAILED and not others_fail:
        _notify("canary-passed", run)


def _notify(kind: str, run: CanaryRun, **facts: object) -> None:
    path = f"/operations/canary/{run.pk}/"
    notify(operators(), kind, str(run.pk), path=path, model=run.model.name, host=run.host, **facts)


def codes_of(run: CanaryRun) -> list[str]:
    return [finding["code"] for finding in run.findings]


def latest_runs(model: int, *, but: int) -> list[CanaryRun]:
    """Return the last run of each of the model's replicas that was done, except this one."""
    runs = CanaryRun.objects.filter(model=model).exclude(pk=but)
    runs = runs.exclude(verdict__in=(Verdict.RUNNING, Verdict.NOT_DONE))
    found: dict[tuple[str, int], CanaryRun] = {}
    for run in runs:
        found.setdefault((run.host, run.number), run)
    return list(found.values())
