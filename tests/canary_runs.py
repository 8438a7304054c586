"""Runs of the canary as pages show them."""

from datetime import timedelta
from typing import Any

from django.utils import timezone

from modelregistry.models import Replica, ServedModel
from portal.canary.judging import Answer
from portal.canary.models import CanaryAnswer, CanaryRun
from portal.canary.prompts import PROMPTS, VERSION

GOOD = {"ja": "東京は日本の首都です。", "en": "Bread needs flour, water and some time."}


def canary_run(model: ServedModel, days_ago: int = 0, **values: Any) -> CanaryRun:
    """Make a healthy run of the model's first replica with its answers, or one with other `values`."""
    replica = Replica.objects.filter(model=model).select_related("host").order_by("host__name", "index")[0]
    began = timezone.now() - timedelta(days=days_ago)
    facts: dict[str, Any] = {
        "model": model,
        "host": replica.host.name,
        "number": replica.index,
        "replica_id": replica.pk,
        "launcher": replica.launcher,
        "version": replica.version,
        "prompts": VERSION,
        "reason": CanaryRun.Reason.NIGHTLY,
        "began_at": began,
        "seen_at": began,
        "ended_at": began,
        "verdict": CanaryRun.Verdict.PASSED,
        "tokens_per_second": 52.5,
    }
    answers = {prompt.name: GOOD[prompt.language] for prompt in PROMPTS} | values.pop("answers", {})
    run = CanaryRun.objects.create(**facts | values)
    CanaryAnswer.objects.bulk_create(
        CanaryAnswer(run=run, prompt=name, text=text, digest=Answer(text=text).digest, finish="stop", tokens=12)
        for name, text in answers.items()
    )
    return run


def failed_run(model: ServedModel, **values: Any) -> CanaryRun:
    """Make a run that repeats one sign in its first five answers."""
    names = [prompt.name for prompt in PROMPTS[:5]]
    finding = {"code": "repeated-sign", "prompts": names}
    answers = {name: "!" * 200 for name in names}
    run = canary_run(model, verdict=CanaryRun.Verdict.FAILED, findings=[finding], answers=answers, **values)
    run.answers.filter(prompt__in=names).update(traits=["repeated-sign"])
    return run
