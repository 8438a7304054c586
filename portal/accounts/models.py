"""People, tenants and memberships, and what is remembered of the company directory."""

import unicodedata
from typing import ClassVar
from zoneinfo import ZoneInfo, available_timezones

from django.contrib.auth.models import AbstractUser, UserManager
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from modelregistry.one_line import check_one_line

# Prefixes of the Unicode names of the letters in East Asian personal names: 々 and 〆 are ideographic marks, 﨑 is a
# compatibility ideograph, and a variation selector chooses one of several shapes of a letter.
EAST_ASIAN = (
    *("CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA ", "HANGUL ", "VERTICAL KANA "),
    *("VARIATION SELECTOR", "MASU MARK"),
)
# Of a tenant. Beyond a hundred to one the others would hardly be served at all while they wait.
LEAST_WEIGHT, MOST_WEIGHT = 0.1, 10


def time_zones() -> set[str]:
    """Return the names of tzdata without its placeholder and the zone that this machine happens to have."""
    return available_timezones() - {"Factory", "localtime"}


def check_time_zone(name: str) -> None:
    if name not in time_zones():
        raise ValidationError(_("%(name)s is not a time zone. Example: Asia/Tokyo"), params={"name": name})


def check_weight(value: float) -> None:
    """Raise ValidationError for what is no weight of a tenant, also for NaN, which no bound refuses."""
    if not LEAST_WEIGHT <= value <= MOST_WEIGHT:
        raise ValidationError(
            _("A weight is from %(least)s to %(most)s."),
            code="no-weight",
            params={"least": LEAST_WEIGHT, "most": MOST_WEIGHT},
        )


# Of Madoguchi itself, see `portal.keys.canary_key`: no person belongs to it, and none chooses it.
INTERNAL_TENANTS = frozenset({"madoguchi-canary"})


class Tenant(models.Model):
    """A department, subsidiary or project: what keys, quotas and usage belong to."""

    slug = models.SlugField(_("short name"), unique=True, help_text=_("Used in commands and addresses."))
    name = models.CharField(_("name"), max_length=100, validators=[check_one_line])
    time_zone = models.CharField(
        _("time zone"),
        max_length=50,
        default="Asia/Tokyo",
        validators=[check_time_zone],
        help_text=_("Daily and monthly quotas begin at midnight here."),
    )
    is_active = models.BooleanField(_("active"), default=True, help_text=_("Off: every key of the tenant stops."))
    key_days = models.PositiveSmallIntegerField(
        _("days that new keys are valid"),
        null=True,
        blank=True,
        default=90,
        validators=[MinValueValidator(1), MaxValueValidator(3650)],
        help_text=_("Suggested for a new key; the person who creates it may choose otherwise. Empty: no expiry."),
    )
    weight = models.FloatField(
        _("weight"),
        default=1.0,
        db_default=1.0,
        validators=[check_weight],
        help_text=_(
            "Where people wait for a model, one of a tenant with weight 2 is served twice as much as one of a tenant "
            "with weight 1. Without a queue it has no effect. From 0.1 to 10."
        ),
    )
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("tenant")
        verbose_name_plural = _("tenants")
        ordering: ClassVar = ["slug"]

    def __str__(self) -> str:
        return self.name

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)


class People(UserManager["User"]):
    def get_by_natural_key(self, username: str | None) -> "User":
        """Return the person of this name, in whatever case it was typed: Yamada and yamada are one."""
        return self.get(username__iexact=username)


class User(AbstractUser):
    """A person. Staff are the operators; what a person may see of tenants follows from Membership.

    An account with a `directory_id` belongs to the directory, which decides its password, names and memberships. The
    others are local accounts. Neither kind ever becomes the other by signing in.
    """

    language = models.CharField(
        _("language"),
        max_length=2,
        blank=True,
        choices=[("ja", "日本語"), ("en", "English")],
        help_text=_("Language of messages about this person's keys. Empty: Japanese."),
    )
    directory_id = models.CharField(
        _("directory id"),
        max_length=255,
        null=True,
        blank=True,
        unique=True,
        help_text=_("Which entry of the company directory this is, whatever it is called there. Empty: local account."),
    )
    left_directory_at = models.DateTimeField(
        _("left the directory"),
        null=True,
        blank=True,
        editable=False,
        help_text=_(
            "Set when the directory, not an operator, made the person inactive: who comes back is active again."
        ),
    )
    is_break_glass = models.BooleanField(
        _("for emergencies"),
        default=False,
        editable=False,
        help_text=_("The one local operator account for when the directory is away; every use of it is reported."),
    )
    wants_mail = models.BooleanField(
        _("notices by mail"),
        default=True,
        help_text=_("Notices of the portal come by mail as well, where it can send."),
    )
    wants_tips = models.BooleanField(
        _("tips"),
        default=True,
        db_default=True,
        help_text=_("At most one in two weeks, to people who have not used models for some time."),
    )
    tenants = models.ManyToManyField(Tenant, through="Membership", related_name="users", verbose_name=_("tenants"))

    objects: ClassVar[People] = People()

    class Meta:
        verbose_name = _("user")
        verbose_name_plural = _("users")
        constraints: ClassVar = [
            models.UniqueConstraint(
                Lower("username"),
                name="one_user_per_name",
                violation_error_message=_("There is such a user already, perhaps in other upper or lower case."),
            ),
            models.UniqueConstraint(
                fields=["is_break_glass"],
                condition=Q(is_break_glass=True),
                name="one_account_for_emergencies",
                violation_error_message=_("There is an account for emergencies already."),
            ),
        ]

    def __str__(self) -> str:
        return self.get_full_name() or self.get_username()

    def clean(self) -> None:
        """Refuse names of more than one line. The user name has a validator of its own."""
        super().clean()
        errors: dict[str, ValidationError] = {}
        for field in ("first_name", "last_name"):
            try:
                check_one_line(getattr(self, field))
            except ValidationError as error:
                errors[field] = error
        if errors:
            raise ValidationError(errors)

    def get_full_name(self) -> str:
        """Return the name as its bearer writes it: the family name first in Chinese characters, kana or hangul."""
        if self.first_name and self.last_name and all(map(_is_east_asian, self.last_name)):
            return f"{self.last_name} {self.first_name}"
        return super().get_full_name()


def _is_east_asian(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(EAST_ASIAN)


class Membership(models.Model):
    """That a person belongs to a tenant. Rows from the directory are kept in sync with it; rows set by hand are not."""

    class Role(models.TextChoices):
        MEMBER = "member", _("member")
        ADMIN = "admin", _("tenant admin")

    class Source(models.TextChoices):
        MANUAL = "manual", _("set by hand")
        DIRECTORY = "directory", _("directory")

    user = models.ForeignKey(User, models.CASCADE, related_name="memberships", verbose_name=_("user"))
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="memberships", verbose_name=_("tenant"))
    role = models.CharField(_("role"), max_length=10, choices=Role, default=Role.MEMBER)
    source = models.CharField(_("source"), max_length=10, choices=Source, default=Source.MANUAL)
    # A mark beside the role: also one from the directory may have it, which knows no such thing.
    is_champion = models.BooleanField(
        _("champion"),
        default=False,
        db_default=False,
        help_text=_("Helps colleagues to begin, and may publish use cases for the tenant."),
    )
    since = models.DateTimeField(_("since"), default=timezone.now, editable=False)

    class Meta:
        verbose_name = _("membership")
        verbose_name_plural = _("memberships")
        constraints: ClassVar = [models.UniqueConstraint(fields=["user", "tenant"], name="one_membership_per_tenant")]

    def __str__(self) -> str:
        return f"{self.user} · {self.tenant} · {self.get_role_display()}"


class DirectoryState(models.Model):
    """The result of the last synchronisation. One row, written by `directory_sync`; none before the first one."""

    class Problem(models.TextChoices):
        AWAY = "away", _("the directory does not answer")
        IMPLAUSIBLE = "implausible", _("it seems to have lost most of our people")
        REFUSED = "refused", _("it refused our question")
        FAULT = "fault", _("a fault of ours")

    tried_at = models.DateTimeField(_("last tried"))
    succeeded_at = models.DateTimeField(_("last followed"), null=True)
    outcome = models.JSONField(default=dict, help_text="Of the last success: the counts of directory_sync.Outcome.")
    problem = models.CharField(_("problem"), max_length=12, choices=Problem, blank=True)
    detail = models.CharField(max_length=500, blank=True)

    def __str__(self) -> str:
        return f"{self.tried_at}: {self.problem or 'synchronised'}"


class DirectoryGroup(models.Model):
    """A group of the directory that the settings name, written by `directory_groups`. Other groups have no row."""

    dn = models.CharField(max_length=1000, unique=True, help_text="As in the settings, in normal form.")
    directory_id = models.CharField(
        max_length=255, blank=True, help_text="What stays when it is renamed, as attribute=value. Empty: not known."
    )
    found_dn = models.CharField(max_length=1000, blank=True, help_text="Where it was found last.")
    missing_since = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.dn
