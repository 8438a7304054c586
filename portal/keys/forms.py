"""Forms for API keys: create, change, replace and revoke one, and report a leaked one."""

from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from modelregistry.models import ServedModel
from modelregistry.one_line import check_one_line
from portal.accounts.models import Membership, Tenant, User
from portal.accounts.permissions import own_tenants
from portal.keys import networks
from portal.keys.lifecycle import Changes
from portal.keys.model_access import open_to
from portal.keys.models import ApiKey, check_expiry
from portal.web.editions import EditionForm

# The lifetime that the tenant of the key proposes, where a person's tenants propose different ones.
PROPOSED, NEVER = "proposed", "never"
LIFETIMES = {30: _("30 days"), 90: _("90 days"), 365: _("1 year")}
OVERLAPS = [
    ("0", _("Stop the old key at once")),
    ("1", _("1 day")),
    ("7", _("7 days")),
    ("30", _("30 days")),
]
# Names proposed for the responsible person. A browser is slow with thousands; every user name can be typed.
PROPOSED_PEOPLE = 300


class LeakedKeyForm(forms.Form):
    """The form to report a key that was found in the wrong place."""

    text = forms.CharField(
        label=_("What you found"),
        max_length=100_000,
        widget=forms.Textarea(attrs={"rows": 4, "autocomplete": "off", "spellcheck": "false"}),
        help_text=_("The key itself, or the text around it. It is not stored."),
    )


class NetworksField(forms.CharField):
    """Networks as people type them. Cleaned, a list as ApiKey stores it."""

    widget = forms.Textarea(attrs={"rows": 2, "autocomplete": "off", "spellcheck": "false"})

    def to_python(self, value: Any) -> Any:
        return networks.parse_networks(super().to_python(value) or "")

    def prepare_value(self, value: Any) -> Any:
        return networks.format_networks(value) if isinstance(value, list) else value


class KeyForm(forms.Form):
    """The fields that the forms of new and existing keys share."""

    name = forms.CharField(
        label=_("Name"),
        max_length=60,
        validators=[check_one_line],
        help_text=_("To recognise the key later: what it is for, or where it is stored."),
    )
    purpose = forms.CharField(
        label=_("Purpose"),
        max_length=200,
        required=False,
        validators=[check_one_line],
        help_text=_("For other people who come across the key."),
    )
    key_class = forms.ChoiceField(
        label=_("Class"),
        choices=[
            (ApiKey.Class.INTERACTIVE.value, _("interactive: a person waits for the answer")),
            (ApiKey.Class.BATCH.value, _("batch: no one waits, so other requests go first")),
        ],
        initial=ApiKey.Class.INTERACTIVE.value,
        required=False,
        widget=forms.RadioSelect,
    )
    networks = NetworksField(
        label=_("Allowed networks"),
        required=False,
        help_text=_(
            "One per line, such as 10.1.0.0/16 or 192.168.7.5. Requests from other networks are refused. Leave empty to"
            " allow all."
        ),
    )
    takes_user_headers = forms.BooleanField(
        label=_("Record end users from Open WebUI"),
        required=False,
        help_text=_("Usage is then listed by the people that Open WebUI names in the headers of its requests."),
    )
    # Asked for the other way around: a form that lacks the field, as one of an older page, leaves the guard on.
    without_loop_guard = forms.BooleanField(
        label=_("Do not watch answers for word loops"),
        required=False,
        help_text=_(
            "For programs whose answers repeat themselves on purpose, such as long tables of equal lines. An answer in"
            " a loop then runs on to its greatest length and counts as usage."
        ),
    )

    # Folded away, as most keys need none of these. The fold opens by itself when one of them has an error.
    FOLDED: tuple[str, ...] = ("models", "purpose", "key_class", "networks", "takes_user_headers", "without_loop_guard")

    def model_field(self, name: str) -> forms.ModelChoiceField:  # type: ignore[type-arg]
        field = self.fields[name]
        assert isinstance(field, forms.ModelChoiceField)
        return field

    def clean_key_class(self) -> str:
        return self.cleaned_data["key_class"] or ApiKey.Class.INTERACTIVE.value

    def plain_fields(self) -> list[forms.BoundField]:
        return [field for field in self.visible_fields() if field.name not in self.FOLDED]

    def folded_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in self.FOLDED if name in self.fields]

    def has_folded_errors(self) -> bool:
        return any(field.errors for field in self.folded_fields())


class NewKeyForm(KeyForm):
    """The form for a new key of one of these tenants, with models that these may use."""

    field_order = ("name", "tenant", "responsible", "lifetime")

    tenant = forms.ModelChoiceField(
        Tenant.objects.none(), label=_("Tenant"), empty_label=None, help_text=_("Usage is counted for this tenant.")
    )
    lifetime = forms.ChoiceField(label=_("Valid for"), widget=forms.RadioSelect)
    models = forms.ModelMultipleChoiceField(
        ServedModel.objects.none(),
        label=_("Models"),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text=_("If you choose none, the key works for all models of the tenant, including future ones."),
    )
    token = forms.CharField(widget=forms.HiddenInput)

    def __init__(self, tenants: QuerySet[Tenant], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tenants = list(tenants)
        self.model_field("tenant").queryset = tenants
        self.model_field("models").queryset = open_to(self.tenants)
        field = self.fields["lifetime"]
        assert isinstance(field, forms.ChoiceField)
        field.choices, field.initial = lifetimes(self.tenants)
        if len(self.tenants) == 1:
            self.fields["tenant"].widget = forms.HiddenInput()
            self.fields["tenant"].initial = self.tenants[0]

    def clean(self) -> dict[str, Any]:
        cleaned = self.cleaned_data
        tenant, chosen = cleaned.get("tenant"), cleaned.get("models")
        if tenant and chosen:
            allowed = set(open_to([tenant]).values_list("pk", flat=True))
            for model in chosen:
                if model.pk not in allowed:
                    self.add_error(
                        "models",
                        ValidationError(
                            _("%(tenant)s may not use %(model)s. Choose another model or another tenant."),
                            params={"tenant": tenant, "model": model},
                        ),
                    )
        return cleaned

    def expires_at(self, now: datetime | None = None) -> datetime | None:
        """Return when the requested key expires; None = never."""
        chosen = self.cleaned_data["lifetime"]
        days = self.cleaned_data["tenant"].key_days if chosen == PROPOSED else None if chosen == NEVER else int(chosen)
        return None if days is None else (now or timezone.now()) + timedelta(days=days)


class NewPersonalKeyForm(NewKeyForm):
    """The form for a personal key, of one of the person's own tenants."""

    def __init__(self, user: User, *args: Any, **kwargs: Any) -> None:
        super().__init__(own_tenants(user), *args, **kwargs)


class ResponsibleField(forms.CharField):
    """A member of the tenant, by user name or mail address. Cleaned, a User.

    The form sets `tenant`, and `current`, who may stay even after leaving the tenant: that must not prevent other
    changes.
    """

    tenant: Tenant
    current: User | None = None

    def clean(self, value: Any) -> Any:
        text = super().clean(value)
        if not text:
            return None
        if self.current and self.current.get_username().lower() == text.lower():
            return self.current
        member = (
            User.objects.filter(memberships__tenant=self.tenant, is_active=True)
            .filter(Q(username__iexact=text) | Q(email__iexact=text))
            .order_by("pk")
            .first()
        )
        if member is None:
            raise ValidationError(
                _("%(name)s is not a member of %(tenant)s. Enter the user name or mail address of a member."),
                params={"name": text, "tenant": self.tenant},
            )
        return member


def responsible_field(*, required: bool) -> ResponsibleField:
    return ResponsibleField(
        label=_("Responsible"),
        required=required,
        max_length=254,
        widget=forms.TextInput(attrs={"list": "members", "autocomplete": "off", "spellcheck": "false"}),
        help_text=_("User name or mail address of a member, who is notified before the key expires."),
    )


class NewServiceKeyForm(NewKeyForm):
    """The form for a service key of this tenant. Proposes its creator as responsible, if a member."""

    responsible = responsible_field(required=True)

    def __init__(self, tenant: Tenant, user: User, *args: Any, **kwargs: Any) -> None:
        super().__init__(Tenant.objects.filter(pk=tenant.pk), *args, **kwargs)
        self.fields["name"].help_text = _("The program that will use the key: Dify, Open WebUI, nightly batch.")
        field = self.fields["responsible"]
        assert isinstance(field, ResponsibleField)
        field.tenant = tenant
        if Membership.objects.filter(user=user, tenant=tenant).exists():
            field.initial = user.get_username()
        self.people = proposed_people(tenant)


class ChangeKeyForm(EditionForm, KeyForm):
    """The form to change this key."""

    field_order = (
        *("name", "purpose", "responsible", "expires_on", "every_model", "models", "key_class", "networks"),
        *("takes_user_headers", "without_loop_guard"),
    )
    FOLDED = ()

    expires_on = forms.DateField(
        label=_("Valid until"),
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
        help_text=_("The key works until the end of this day. Leave empty for no expiry."),
    )
    every_model = forms.ChoiceField(
        label=_("Models"),
        choices=[("yes", _("all that the tenant may use, including future ones")), ("no", _("only these:"))],
        widget=forms.RadioSelect,
    )
    models = forms.ModelMultipleChoiceField(
        ServedModel.objects.none(), label=_("Only these models"), required=False, widget=forms.CheckboxSelectMultiple
    )

    def __init__(self, key: ApiKey, *args: Any, **kwargs: Any) -> None:
        chosen = list(key.allowed_models.all())
        self.key = key
        # Midnight belongs to the day that it ends.
        last = key.expires_at and (key.expires_at - timedelta(microseconds=1)).astimezone(key.tenant.zone).date()
        initial = {
            "name": key.name,
            "purpose": key.purpose,
            "key_class": key.key_class,
            "networks": key.networks,
            "takes_user_headers": key.takes_user_headers,
            "without_loop_guard": not key.loop_guard,
            "expires_on": last,
            "every_model": "yes" if key.every_model else "no",
            "models": chosen,
            "responsible": key.responsible.get_username() if key.responsible else "",
        }
        super().__init__(*args, **{**kwargs, "initial": initial})
        # Models that the key has can be chosen even if they are currently not offered.
        offered = open_to([key.tenant])
        self.model_field("models").queryset = ServedModel.objects.filter(
            Q(pk__in=offered.values("pk")) | Q(pk__in=[model.pk for model in chosen])
        )
        if key.user is None:
            field = responsible_field(required=False)
            field.tenant, field.current = key.tenant, key.responsible
            self.fields["responsible"] = field
            self.people = proposed_people(key.tenant)
            self.order_fields(self.field_order)

    def clean_expires_on(self) -> date | None:
        day: date | None = self.cleaned_data["expires_on"]
        if "expires_on" in self.changed_data:
            check_expiry(day)
        if day and "expires_on" in self.changed_data and end_of(day, self.key.tenant.zone) <= timezone.now():
            raise ValidationError(_("This day is over. To stop the key now, revoke it."))
        return day

    def clean(self) -> dict[str, Any]:
        if self.cleaned_data.get("every_model") == "no" and not self.cleaned_data.get("models"):
            self.add_error("models", _("Choose at least one model, or all of them."))
        return self.cleaned_data

    def changes(self) -> Changes:
        """Return what differs, for `lifecycle.change_key`, so that changes that others made meanwhile stay."""
        given, changed = self.cleaned_data, set(self.changed_data)
        changes: dict[str, Any] = {
            name: given[name]
            for name in ("name", "purpose", "key_class", "networks", "takes_user_headers", "responsible")
            if name in changed and name in given
        }
        if "without_loop_guard" in changed:
            changes["loop_guard"] = not given["without_loop_guard"]
        if "expires_on" in changed:
            day = given["expires_on"]
            changes["expires_at"] = end_of(day, self.key.tenant.zone) if day else None
        if changed & {"every_model", "models"}:
            changes["allowed_models"] = None if given["every_model"] == "yes" else list(given["models"])
        return cast(Changes, changes)


class RotateForm(forms.Form):
    """The form to replace a key: how long the old one keeps working beside its successor."""

    overlap = forms.ChoiceField(
        label=_("The old key still works for"), choices=OVERLAPS, initial="7", widget=forms.RadioSelect
    )

    def chosen_overlap(self) -> timedelta:
        return timedelta(days=int(self.cleaned_data["overlap"]))


class RevokeForm(forms.Form):
    """The form to revoke a key."""

    because = forms.CharField(
        label=_("Reason"),
        max_length=200,
        required=False,
        validators=[check_one_line],
        help_text=_("Shown to the people concerned and kept in the audit log."),
    )


def lifetimes(tenants: Iterable[Tenant]) -> tuple[list[tuple[str, Any]], str]:
    """Return the lifetimes to choose from, and the proposed one: that of the tenants if they agree."""
    proposals = {tenant.key_days for tenant in tenants}
    own = {days: ngettext("%(days)s day", "%(days)s days", days) % {"days": days} for days in proposals if days}
    alike = len(proposals) == 1
    days = {**own, **LIFETIMES} if alike else LIFETIMES
    choices: list[tuple[str, Any]] = [(str(number), days[number]) for number in sorted(days)]
    choices.append((NEVER, _("no expiry")))
    if alike:
        [proposal] = proposals
        return choices, str(proposal) if proposal else NEVER
    return [(PROPOSED, _("as the tenant proposes")), *choices], PROPOSED if proposals else "90"


def proposed_people(tenant: Tenant) -> list[User]:
    """Return the people to propose as responsible: admins first, and not all of a large tenant."""
    people = User.objects.filter(memberships__tenant=tenant, is_active=True)
    return list(people.order_by("memberships__role", "username")[:PROPOSED_PEOPLE])


def end_of(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), zone)
