"""The forms of models and hosts: all that can be set, grouped as operators think of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from django import forms
from django.db import transaction
from django.forms import BoundField
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from modelregistry import hosts, sampling
from modelregistry.engines.base import Engine
from modelregistry.engines.registry import all_engines, engine_named
from modelregistry.models import Host, HostReport, ServedModel, engine_choices, launcher_choices
from modelregistry.plain_numbers import read_decimal, read_whole
from portal.accounts.models import Tenant, User
from portal.accounts.permissions import without_internal
from portal.keys.models import ModelAccess
from portal.operations import actions
from portal.web.editions import EditionForm
from portal.web.row_locks import lock_row


class WholeNumberField(forms.IntegerField):
    """A number that is typed as one: see `plain_numbers`."""

    def to_python(self, value: Any) -> int | None:
        if isinstance(value, str) and value.strip():
            try:
                return read_whole(value.strip())
            except ValueError as error:
                raise forms.ValidationError(self.error_messages["invalid"], code="invalid") from error
        return super().to_python(value)


class DecimalNumberField(forms.FloatField):
    """The same with a point."""

    def to_python(self, value: Any) -> float | None:  # type: ignore[override]  # its stubs say int
        if isinstance(value, str) and value.strip():
            try:
                return read_decimal(value.strip())
            except ValueError as error:
                raise forms.ValidationError(self.error_messages["invalid"], code="invalid") from error
        return super().to_python(value)


class LinesField(forms.CharField):
    """A list of texts, one to a line."""

    widget = forms.Textarea(attrs={"rows": 3, "spellcheck": "false", "autocapitalize": "off"})

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        text = value if isinstance(value, str) else self.prepare_value(value) or ""
        return [line.strip() for line in text.splitlines() if line.strip()]


class WordsField(forms.CharField):
    """A list of texts without spaces, separated by spaces or commas."""

    def prepare_value(self, value: Any) -> Any:
        return ", ".join(str(one) for one in value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        text = value if isinstance(value, str) else self.prepare_value(value) or ""
        return text.replace(",", " ").replace("、", " ").split()


class NumbersField(WordsField):
    """A list of whole numbers."""

    def to_python(self, value: Any) -> Any:
        words = super().to_python(value)
        try:
            return [read_whole(word) for word in words]
        except ValueError as error:
            raise forms.ValidationError(_("Enter numbers, for example: 0, 1")) from error


OWN_ENGINES = tuple(engine.name for engine in all_engines() if not engine.external)
EXTERNAL_ENGINES = tuple(engine.name for engine in all_engines() if engine.external)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fieldset:
    """Fields that belong together. `folded`: most models need none of them. `samples`: also sampling.

    `engines`: the only ones that need them; with one of these chosen they are open. Empty: all engines.
    """

    title: Promise | str
    fields: tuple[str, ...]
    folded: bool = False
    samples: bool = False
    engines: tuple[str, ...] = ()


GROUPS = (
    Fieldset(title=_("What runs it"), fields=("engine",)),
    Fieldset(
        title=_("An engine that runs elsewhere"),
        fields=("url", "upstream_model", "upstream_key"),
        folded=True,
        engines=EXTERNAL_ENGINES,
    ),
    Fieldset(
        title=_("Files and engine"),
        fields=("path", "args", "launcher", "engine_version"),
        folded=True,
        engines=OWN_ENGINES,
    ),
    Fieldset(
        title=_("What clients see"),
        fields=("name", "aliases", "task", "description_ja", "description_en", "declared_capabilities", "licence"),
    ),
    Fieldset(title=_("Size"), fields=("context", "slots", "replicas", "replicas_max")),
    Fieldset(title=_("Word loops and sampling"), fields=("loops", "loop_sensitivity"), folded=True, samples=True),
    Fieldset(title=_("Where it runs"), fields=("host", "gpus", "tensor_parallel", "nodes", "overcommit"), folded=True),
    Fieldset(
        title=_("Who may use it, and how long"),
        fields=("tenants", "hours", "idle_after", "sleep_mode", "pinned", "retires_on"),
        folded=True,
    ),
    Fieldset(
        title=_("Time-outs and risks"),
        fields=("connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout", "allowed_risks"),
        folded=True,
    ),
)


# These determine how much memory a model takes, and where.
MEMORY = frozenset(
    ["engine", "launcher", "path", "args", "context", "slots", "replicas", "host", "gpus", "tensor_parallel", "nodes"]
)


class HostForm(EditionForm, forms.ModelForm):  # type: ignore[type-arg]  # generic in its stubs only
    class Meta:
        model = Host
        fields: ClassVar = list(hosts.FIELDS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.clustered:  # it says its address itself
            del self.fields["address"]

    def carry_out(self, by: User) -> bool:
        """Change the host; return whether that was possible. If not, the form has the reason at its field."""
        try:
            actions.change_host(by, self.instance, **self.cleaned_data)
        except actions.ActionRefused as refusal:
            for name, sentences in (refusal.fields or {"": [refusal.sentence]}).items():
                self.add_error(name if name in self.fields else None, [forms.ValidationError(one) for one in sentences])
            return False
        return True


@dataclass(frozen=True, slots=True)
class ParameterRow:
    """A parameter of sampling: its fields default, least and most."""

    name: str
    fields: tuple[BoundField, ...]
    engine: str  # the chosen one, "" while none is

    @property
    def engines(self) -> list[Engine]:
        """The engines that have it."""
        return [engine for engine in all_engines() if self.name in engine.sampling_members]

    @property
    def titles(self) -> str:
        """The titles of these engines, or "" if all have it."""
        return "" if self.engines == all_engines() else ", ".join(str(_(engine.title)) for engine in self.engines)

    @property
    def is_hidden(self) -> bool:
        """Whether the chosen engine does not have it, nor has it a value that would be refused."""
        return bool(self.engine) and self.engine not in {one.name for one in self.engines} and not self.is_set

    @property
    def errors(self) -> list[str]:
        return [str(error) for field in self.fields for error in field.errors]

    @property
    def range(self) -> str:
        """What engines accept."""
        return "{:g} – {:g}".format(*sampling.PARAMETERS[self.name])

    @property
    def is_set(self) -> bool:
        return any(field.value() not in (None, "") for field in self.fields)


SETTING_LABELS = {"default": _("Default"), "least": _("Least"), "most": _("Most")}


def sampling_fields() -> dict[str, DecimalNumberField]:
    """Return a field for each setting of each parameter, by `field_of`."""
    made = {}
    for name, (least, most) in sampling.PARAMETERS.items():
        for setting, label in SETTING_LABELS.items():
            made[field_of(name, setting)] = DecimalNumberField(
                label=label,
                required=False,
                min_value=least,
                max_value=most,
                widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
            )
    return made


def field_of(name: str, setting: str) -> str:
    return f"{name}_{setting}"


class ServedModelForm(EditionForm, forms.ModelForm):  # type: ignore[type-arg]  # generic in its stubs only
    """The form of a model. A key is never sent back to a browser. It saves only through `actions`."""

    aliases = WordsField(
        label=_("Also called"),
        required=False,
        help_text=_("Other names, separated by spaces. A name that belonged to another model moves to this one."),
    )
    tenants = forms.ModelMultipleChoiceField(
        without_internal(Tenant.objects.all()),
        label=_("Visible to"),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text=_("If none is chosen, all tenants may use it."),
    )
    args = LinesField(
        label=_("More arguments"),
        required=False,
        help_text=_("One per line, for example --dtype=half. They override the arguments that are set automatically."),
    )
    gpus = NumbersField(
        label=_("GPUs"), required=False, help_text=_("Numbers, for example: 0, 1. Empty: any GPU with enough memory.")
    )
    allowed_risks = forms.MultipleChoiceField(
        label=_("Allow for this model"),
        choices=ServedModel.Risk.choices,
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text=_("Only for files from a source that you trust with this server."),
    )
    declared_capabilities = forms.MultipleChoiceField(
        label=_("It can also"),
        choices=ServedModel.Capability.choices,
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text=_("What its arguments and files do not show, for example of an engine elsewhere."),
    )
    upstream_key = forms.CharField(
        label=_("Key of the external engine"),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        required=False,
        help_text=_("Never shown. Empty: stays as it is."),
    )

    class Meta:
        model = ServedModel
        fields: ClassVar = [name for group in GROUPS for name in group.fields if name not in ("aliases", "tenants")]
        error_messages: ClassVar = {"name": {"unique": _("There is a model with this name already.")}}
        field_classes: ClassVar = {
            **dict.fromkeys(
                ("context", "slots", "replicas", "replicas_max", "tensor_parallel", "nodes", "idle_after"),
                WholeNumberField,
            ),
            **dict.fromkeys(
                ("connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout"), DecimalNumberField
            ),
        }
        widgets: ClassVar = {
            "retires_on": forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
            "task": forms.RadioSelect,
            "engine": forms.RadioSelect,
            "loops": forms.RadioSelect,
            "loop_sensitivity": forms.RadioSelect,
            "sleep_mode": forms.RadioSelect,
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refused = False  # for lack of memory: the checkbox that forces it is shown
        self.fields["host"].empty_label = _("any host where it fits")  # type: ignore[attr-defined]
        if installed := list_installed_versions():
            self.fields["engine_version"].help_text = _(
                "Empty: the newest one that has worked with this model. Installed: %(versions)s."
            ) % {"versions": "; ".join(installed)}
        self.fields["engine"].choices = engine_choices()  # type: ignore[attr-defined]  # none is no choice
        for name in ("loops", "loop_sensitivity", "sleep_mode", "nodes"):
            self.fields[name].required = False  # a form without it leaves it as it is
        self.fields.update(sampling_fields())
        for name, settings in self.instance.sampling.items():
            self.initial.update({field_of(name, setting): value for setting, value in settings.items()})
        for name in ("path", "url"):  # each is needed with the engines that its group is open for
            self.fields[name].is_needed = True  # type: ignore[attr-defined]
        self.fields["launcher"].choices = launcher_choices()  # type: ignore[attr-defined]
        if self.instance.pk:
            self.fields["name"].disabled = True
            self.fields["name"].help_text = _("Clients know it by this name. You can add other names below.")
            self.initial.setdefault("aliases", [alias.name for alias in self.instance.aliases.all()])
            self.initial.setdefault("tenants", permitted_tenants(self.instance))

    def clean_upstream_key(self) -> str:
        entered: str = self.cleaned_data["upstream_key"]
        return entered or self.instance.upstream_key

    def clean_loops(self) -> str:
        chosen: str = self.cleaned_data["loops"]
        return chosen or self.instance.loops

    def clean_loop_sensitivity(self) -> str:
        chosen: str = self.cleaned_data["loop_sensitivity"]
        return chosen or self.instance.loop_sensitivity

    def clean_sleep_mode(self) -> str:
        chosen: str = self.cleaned_data["sleep_mode"]
        return chosen or self.instance.sleep_mode

    def clean_nodes(self) -> int:
        chosen: int | None = self.cleaned_data["nodes"]
        return chosen or self.instance.nodes

    def clean(self) -> dict[str, Any]:
        """Gather the parameters of sampling, and check each, so that what is wrong is shown in its row."""
        super().clean()
        values = self.cleaned_data
        members = engine_named(values.get("engine", "")).sampling_members
        values["sampling"] = {}
        for name in sampling.PARAMETERS:
            given = {setting: values.pop(field_of(name, setting), None) for setting in sampling.SETTINGS}
            settings = {setting: value for setting, value in given.items() if value is not None}
            if not settings:
                continue
            values["sampling"][name] = settings
            try:
                sampling.check_sampling({name: settings}, members)
            except forms.ValidationError as error:
                self.add_error(field_of(name, sampling.SETTINGS[0]), error)
        return values

    def check_stored_edition(self) -> None:
        """Add an error if the row has changed since the page was shown. That it is gone, `actions` say."""
        row = ServedModel.objects.filter(pk=self.instance.pk).first()
        if row is not None:
            self.check_edition(type(self)(instance=row))

    def parameter_rows(self) -> list[ParameterRow]:
        """Return all parameters. Those that the chosen engine does not have are hidden until another is chosen."""
        engine = self["engine"].value() or ""
        return [
            ParameterRow(name, tuple(self[field_of(name, setting)] for setting in SETTING_LABELS), engine)
            for name in sampling.PARAMETERS
        ]

    def field_groups(self) -> Iterator[tuple[Fieldset, list[BoundField], bool]]:
        """Yield (group, its fields, whether it is open): a group with an error or a set value is not folded.

        Of the groups that only some engines need, those of the chosen one are open; while none is, those of our own.
        """
        engine = self["engine"].value() or OWN_ENGINES[0]
        for group in GROUPS:
            fields = [self[name] for name in group.fields]
            failed = any(field.errors for field in fields)
            forced = (self.refused and "overcommit" in group.fields) or engine in group.engines
            forced |= group.samples and any(row.is_set for row in self.parameter_rows())
            yield group, fields, failed or forced or not group.folded or any(self._is_set(field) for field in fields)

    @property
    def takes_other_memory(self) -> bool:
        """Whether what was sent changes what a start would take. A model that is stopped takes nothing."""
        return self.instance.pk is None or (self.instance.enabled and not MEMORY.isdisjoint(self.changed_data))

    def _is_set(self, field: BoundField) -> bool:
        default = ServedModel().__dict__.get(field.name)
        return bool(field.initial) and field.initial != default

    def carry_out(self, by: User) -> ServedModel | None:
        """Register or change the model; None if that was refused: the form has the reason at its field."""
        values = dict(self.cleaned_data)
        aliases, tenants = values.pop("aliases"), values.pop("tenants")
        try:
            if self.instance.pk is None:
                return actions.register_model(by, aliases=aliases, tenants=tenants, **values)
            with transaction.atomic():
                lock_row(ServedModel, self.instance.pk)  # once more: checking the files may have taken seconds
                self.check_stored_edition()
                if self.errors:
                    return None
                actions.set_aliases(by, self.instance, aliases)
                actions.set_visibility(by, self.instance, tenants)
                return actions.change_model(by, self.instance, **values)
        except actions.ActionRefused as refusal:
            for name, sentences in (refusal.fields or {"": [refusal.sentence]}).items():
                self.add_error(name if name in self.fields else None, [forms.ValidationError(one) for one in sentences])
            return None


def list_installed_versions() -> list[str]:
    """Return the reported versions that a model may be pinned to: "vllm 0.32.0, 0.33.0", a text for each launcher."""
    found: dict[str, set[str]] = {}
    for installed in HostReport.objects.values_list("installed", flat=True):
        for launcher, versions in installed.items():
            found.setdefault(launcher, set()).update(versions)
    return [f"{launcher} {', '.join(sorted(versions))}" for launcher, versions in sorted(found.items()) if versions]


def permitted_tenants(model: ServedModel) -> list[Tenant]:
    """Return the only tenants that may use the model; none: all may."""
    return [access.tenant for access in ModelAccess.objects.filter(model=model).select_related("tenant")]
