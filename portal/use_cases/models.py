"""Use cases: what colleagues use models for, with prompts that others can try.

What a person fills in is never stored: only the texts of the case itself, and how often it was opened and tried.
"""

from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.translation import get_language, pgettext_lazy
from django.utils.translation import gettext_lazy as _

from modelregistry.one_line import check_one_line
from portal.accounts.models import Tenant
from portal.use_cases.variables import Variable, read_variables

MAX_TITLE, MAX_SUMMARY, MAX_SYSTEM, MAX_PROMPT = 80, 200, 4000, 8000
MAX_EXPECTED, MAX_ANSWER, MAX_NOTE, MAX_COMMENT = 1000, 8000, 500, 1000
MOST_MINUTES = 480  # that one use of a case may save: a working day
LEAST_SAID = 3  # people who must have said how many minutes they save before the number is shown


class Language(models.TextChoices):
    JA = "ja", "日本語"
    EN = "en", "English"


class TargetGroup(models.TextChoices):
    """Who a use case is for."""

    EVERYONE = "everyone", _("everyone")
    SALES = "sales", _("sales")
    SUPPORT = "support", _("customer support")
    PLANNING = "planning", _("planning")
    HR = "hr", _("HR")
    LEGAL = "legal", _("legal")
    ACCOUNTING = "accounting", _("accounting")
    DEVELOPMENT = "development", _("development")
    NETWORK = "network", _("network operations")


class TaskKind(models.TextChoices):
    WRITE = "write", _("write")
    REWRITE = "rewrite", _("rewrite")
    SUMMARISE = "summarise", _("summarise")
    TRANSLATE = "translate", _("translate")
    EXPLAIN = "explain", _("explain")
    CHECK = "check", _("check")
    EXTRACT = "extract", _("extract")
    CODE = "code", pgettext_lazy("kind of use case", "program")
    IDEAS = "ideas", _("find ideas")


class UseCase(models.Model):
    """A use case. What people see is its `current` version; None: it was never published.

    `helped`, `minutes` and `minutes_said` are computed from its marks by `reactions`, so that a list need not read
    thousands of them.
    """

    name = models.CharField(
        _("name"), max_length=MAX_TITLE, validators=[check_one_line], help_text="A title of the newest version."
    )
    # Its file, of those that Madoguchi brings along.
    starter = models.CharField(max_length=40, null=True, blank=True, unique=True, editable=False)
    # Whose champions decide; None: operators.
    tenant = models.ForeignKey(
        Tenant, models.CASCADE, null=True, blank=True, related_name="use_cases", verbose_name=_("tenant")
    )
    is_company_wide = models.BooleanField(_("for the whole company"), default=False)
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="use_cases", verbose_name=_("proposed by")
    )
    current = models.ForeignKey("UseCaseVersion", models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    published_at = models.DateTimeField(_("published"), null=True)
    retired_at = models.DateTimeField(_("hidden"), null=True)
    hidden_by_author = models.BooleanField(default=False, help_text="Who may then show it again.")
    opened = models.PositiveIntegerField(_("opened"), default=0)
    tried = models.PositiveIntegerField(_("tried"), default=0)
    helped = models.PositiveIntegerField(_("helped"), default=0)
    minutes = models.PositiveSmallIntegerField(_("minutes saved, median"), null=True)
    minutes_said = models.PositiveIntegerField(default=0)

    class Meta:
        verbose_name = _("use case")
        verbose_name_plural = _("use cases")
        ordering: ClassVar = ["-pk"]
        indexes: ClassVar = [
            models.Index(fields=["-helped", "-id"], name="use_cases_by_help"),
            models.Index(fields=["-tried", "-id"], name="use_cases_by_use"),
        ]

    def __str__(self) -> str:
        return f"#{self.pk} {self.name}"

    @property
    def title(self) -> str:
        """What people see as its name, in the reader's language if it has that."""
        return self.current.text.title if self.current else self.name

    @property
    def shown_minutes(self) -> int | None:
        """The minutes saved as people said; None: too few said so."""
        return self.minutes if self.minutes_said >= LEAST_SAID else None


class UseCaseVersion(models.Model):
    """One state of a case's texts. Once proposed it never changes but in its state."""

    class State(models.TextChoices):
        DRAFT = "draft", _("draft")
        PROPOSED = "proposed", _("proposed")
        RETURNED = "returned", _("returned")
        PUBLISHED = "published", _("published")
        REPLACED = "replaced", _("replaced by a newer version")

    use_case = models.ForeignKey(UseCase, models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField(_("version"))
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", verbose_name=_("author")
    )
    state = models.CharField(_("state"), max_length=10, choices=State, default=State.DRAFT)
    kind = models.CharField(_("kind of task"), max_length=12, choices=TaskKind)
    departments = models.CharField(max_length=120, help_text="Codes between commas, also before the first and after.")
    model = models.CharField(_("model"), max_length=100, blank=True, help_text="Its name or alias. Empty: any.")
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    decided_at = models.DateTimeField(_("decided"), null=True)
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", verbose_name=_("decided by")
    )
    note = models.CharField(_("comment"), max_length=MAX_NOTE, blank=True)
    starter_sum = models.CharField(max_length=64, blank=True, help_text="Of the file that it was made of.")

    class Meta:
        verbose_name = _("version of a use case")
        verbose_name_plural = _("versions of use cases")
        ordering: ClassVar = ["use_case", "number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["use_case", "number"], name="one_use_case_version_per_number"),
        ]
        indexes: ClassVar = [models.Index(fields=["state", "created_at"], name="use_case_versions_by_state")]

    def __str__(self) -> str:
        return f"{self.use_case_id} v{self.number}"

    @property
    def department_codes(self) -> list[str]:
        return [code for code in self.departments.split(",") if code]

    @property
    def department_labels(self) -> list[str]:
        known = dict(TargetGroup.choices)
        return [str(known[code]) for code in self.department_codes if code in known]

    @property
    def text(self) -> "UseCaseText":
        """The text in the reader's language, or else in the other one."""
        return self.text_in(get_language() or "")

    def text_in(self, language: str) -> "UseCaseText":
        """Return the text in this language, or else in the other one."""
        return min(self.texts.all(), key=lambda text: (text.language != language, text.language != "ja"))

    @property
    def languages(self) -> list[str]:
        return sorted(text.language for text in self.texts.all())


class UseCaseText(models.Model):
    """What a version says in one language. `variables` as `Variable.to_json`."""

    version = models.ForeignKey(UseCaseVersion, models.CASCADE, related_name="texts")
    language = models.CharField(_("language"), max_length=2, choices=Language)
    title = models.CharField(_("title"), max_length=MAX_TITLE, validators=[check_one_line])
    summary = models.CharField(_("what it is good for"), max_length=MAX_SUMMARY, validators=[check_one_line])
    system = models.CharField(_("instructions"), max_length=MAX_SYSTEM, blank=True)
    prompt = models.CharField(_("prompt"), max_length=MAX_PROMPT)
    expected_input = models.CharField(_("what you need"), max_length=MAX_EXPECTED, blank=True)
    example_answer = models.CharField(_("example of an answer"), max_length=MAX_ANSWER, blank=True)
    variables = models.JSONField(default=list)

    class Meta:
        verbose_name = _("text of a use case")
        verbose_name_plural = _("texts of use cases")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["version", "language"], name="one_use_case_text_per_language"),
        ]

    def __str__(self) -> str:
        return self.title

    @property
    def fields(self) -> tuple[Variable, ...]:
        """What is to be filled in."""
        return read_variables(self.variables)


class HelpedMark(models.Model):
    """That a case helped a person, and how many minutes it saved, as they said; null: they did not say."""

    use_case = models.ForeignKey(UseCase, models.CASCADE, related_name="marks")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    minutes = models.PositiveSmallIntegerField(null=True)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        verbose_name = _("“helped me”")
        verbose_name_plural = _("“helped me”")
        constraints: ClassVar = [models.UniqueConstraint(fields=["use_case", "user"], name="one_mark_per_person")]

    def __str__(self) -> str:
        return f"{self.use_case_id} {self.user_id}"


class UseCaseComment(models.Model):
    """What a person says about a case, in Markdown."""

    use_case = models.ForeignKey(UseCase, models.CASCADE, related_name="comments")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+", verbose_name=_("author"))
    text = models.CharField(_("comment"), max_length=MAX_COMMENT)
    at = models.DateTimeField(_("time"), default=timezone.now)

    class Meta:
        verbose_name = _("comment on a use case")
        verbose_name_plural = _("comments on use cases")
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return f"{self.use_case_id} {self.author_id}"


class UseCaseCheck(models.Model):
    """How a model did with the example values of a published case, at night. The answer is not stored."""

    class Outcome(models.TextChoices):
        FINE = "fine", _("answered")
        EMPTY = "empty", _("the answer is empty")
        REFUSED = "refused", _("the model or the gateway refused")
        LOOPING = "looping", _("the answer repeats itself without end")
        FAILED = "failed", _("the engine failed")

    use_case = models.OneToOneField(UseCase, models.CASCADE, primary_key=True, related_name="check_row")
    version = models.ForeignKey(UseCaseVersion, models.CASCADE, related_name="+")
    # When it was last tried, and whether that came to a result; the result below may be older.
    tried_at = models.DateTimeField()
    obstacle = models.CharField(max_length=12, blank=True)  # a CanaryRun.Obstacle
    outcome = models.CharField(_("result"), max_length=10, choices=Outcome, blank=True)
    checked_at = models.DateTimeField(null=True)
    model = models.CharField(max_length=100, blank=True)  # that was asked
    tokens = models.PositiveIntegerField(default=0)
    duration_ms = models.PositiveIntegerField(default=0)

    class Meta:
        verbose_name = _("check of a use case")
        verbose_name_plural = _("checks of use cases")

    def __str__(self) -> str:
        return f"{self.use_case_id} {self.outcome}"

    @property
    def seconds(self) -> float:
        return self.duration_ms / 1000


class CheckSession(models.Model):
    """The process that checks use cases now. One row; it is free when `seen_at` is null or old."""

    seen_at = models.DateTimeField(null=True)
    began_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("session of checks")
        verbose_name_plural = _("sessions of checks")

    def __str__(self) -> str:
        return f"{self.seen_at}"


class CountedToday(models.Model):
    """That one person opened, or tried, one case on this day: only a keyed digest, until the day is over."""

    digest = models.CharField(max_length=64, primary_key=True)
    day = models.DateField(db_index=True)

    def __str__(self) -> str:
        return f"{self.day}"


def join_departments(codes: Any) -> str:
    """Return the codes as a version stores them, in the order of TargetGroup."""
    return "," + "".join(f"{code}," for code in TargetGroup.values if code in set(codes))
