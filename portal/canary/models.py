"""What models answered to the canary's fixed prompts. Its own texts alone: never a person's."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from modelregistry.models import ServedModel

MAX_TEXT = 4096  # characters of an answer that are kept


class CanaryRun(models.Model):
    """The fixed prompts put to one replica. `judging` says what the results mean."""

    class Reason(models.TextChoices):
        NIGHTLY = "nightly", _("nightly")
        FIRST = "first", _("first time")
        START = "start", _("the engine was started")
        ENGINE = "engine", _("another engine version")
        FILES = "files", _("changed model files")
        REQUEST = "request", _("an operator asked")

    class Verdict(models.TextChoices):
        RUNNING = "running", _("running")
        PASSED = "passed", _("healthy")
        CHANGED = "changed", _("answers changed")
        FAILED = "failed", _("failed")
        NOT_DONE = "not-done", _("not done")

    class Obstacle(models.TextChoices):
        """Why a run was not done. It is tried again; nothing is said about the model."""

        GATEWAY = "gateway", _("the gateway did not answer")
        KEY = "key", _("the canary’s key was refused")
        BUSY = "busy", _("there was no room: the queue or a quota was full")
        ENGINE = "engine", _("the engine stopped or restarted meanwhile")
        INTERRUPTED = "interrupted", _("the run was interrupted")

    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="canary_runs", verbose_name=_("model"))
    host = models.CharField(_("host"), max_length=100)
    number = models.PositiveSmallIntegerField(_("replica"), default=0)  # of the model on the host
    # What answered, as Replica and FileReport had it when the run began.
    replica_id = models.BigIntegerField()
    run_id = models.CharField(max_length=40, blank=True)
    launcher = models.CharField(max_length=20, blank=True)
    version = models.CharField(_("engine version"), max_length=60, blank=True)
    files = models.CharField(max_length=32, blank=True)
    prompts = models.PositiveSmallIntegerField(_("version of the prompts"))
    reason = models.CharField(_("why"), max_length=10, choices=Reason)
    began_at = models.DateTimeField(_("began"))
    seen_at = models.DateTimeField()  # when it last had an answer; one that is silent for long was interrupted
    ended_at = models.DateTimeField(_("ended"), null=True)
    verdict = models.CharField(_("result"), max_length=10, choices=Verdict, default=Verdict.RUNNING)
    obstacle = models.CharField(max_length=12, choices=Obstacle, blank=True)
    findings = models.JSONField(default=list)  # `judging.CanaryFinding`, each as an object
    changed = models.PositiveSmallIntegerField(default=0)  # answers that differ from the reference
    tokens_per_second = models.FloatField(null=True)  # of its quicker answers; null: not measured
    usual_tokens_per_second = models.FloatField(null=True)  # of the healthy runs before; null: too few
    # Later runs on this host are compared with it: the first one without a fault, then one that operators accepted.
    is_reference = models.BooleanField(default=False)
    accepted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", verbose_name=_("accepted by")
    )

    class Meta:
        verbose_name = _("canary run")
        verbose_name_plural = _("canary runs")
        # By number, not by time: a clock may be set back.
        ordering: ClassVar = ["-pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["model", "host"], condition=Q(is_reference=True), name="one_canary_reference"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} {self.host} #{self.number}: {self.verdict}"


class CanaryAnswer(models.Model):
    """What was answered to one prompt. `traits`: codes of `judging`, noted also where they are no alarm."""

    run = models.ForeignKey(CanaryRun, models.CASCADE, related_name="answers")
    prompt = models.CharField(max_length=30)  # a name of `prompts`
    text = models.CharField(max_length=MAX_TEXT, blank=True)  # its beginning
    digest = models.CharField(max_length=64)  # of all of it
    finish = models.CharField(max_length=20, blank=True)  # as the engine gave it; "error": `error` says which
    error = models.CharField(max_length=200, blank=True)
    tokens = models.PositiveIntegerField(default=0)
    first_token_ms = models.PositiveIntegerField(null=True)
    duration_ms = models.PositiveIntegerField(default=0)
    traits = models.JSONField(default=list)

    class Meta:
        verbose_name = _("canary answer")
        verbose_name_plural = _("canary answers")
        ordering: ClassVar = ["pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["run", "prompt"], name="one_canary_answer_per_prompt"),
        ]

    def __str__(self) -> str:
        return f"{self.run_id} {self.prompt}"


class CanaryRequest(models.Model):
    """An operator asks for a run now. Written by pages and the API, deleted when the run has ended."""

    model = models.OneToOneField(ServedModel, models.CASCADE, primary_key=True, related_name="canary_request")
    at = models.DateTimeField()

    class Meta:
        verbose_name = _("request for a canary run")
        verbose_name_plural = _("requests for canary runs")

    def __str__(self) -> str:
        return f"{self.model_id} {self.at}"
