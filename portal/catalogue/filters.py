"""The search, the filters and the order of the catalogue, as they are in its address."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from modelregistry.models import ServedModel
from portal.catalogue.entries import Badge, CatalogueEntry
from portal.keys.model_access import Liveness, sort_key

SORTS = {
    "": _("suggested first"),
    "name": _("by name"),
    "first-token": _("fastest first token"),
    "rate": _("highest speed"),
    "context": _("longest context"),
    "size": _("largest"),
}

# A model of which the number is not known comes last; those that are equal by name.
KEYS: dict[str, Callable[[CatalogueEntry], tuple[Any, ...]]] = {
    "": lambda entry: sort_key(entry.offer),
    "name": lambda entry: (entry.name.casefold(),),
    "first-token": lambda entry: (_or_last(entry.speed.first_token if entry.speed else None), entry.name),
    "rate": lambda entry: (_or_last(entry.speed.rate if entry.speed else None, largest=True), entry.name),
    "context": lambda entry: (_or_last(entry.context, largest=True), entry.name),
    "size": lambda entry: (_or_last(entry.parameters, largest=True), entry.name),
}


def _or_last(number: float | None, *, largest: bool = False) -> float:
    if not number:
        return float("inf")
    return -number if largest else number


class CatalogueFilter(forms.Form):
    """What a person looks for. Fields that are wrong in a typed address are as if they were empty."""

    q = forms.CharField(
        label=_("Search"), max_length=100, required=False, widget=forms.TextInput(attrs={"type": "search"})
    )
    task = forms.ChoiceField(
        label=_("Task"), choices=[("", _("every task")), *ServedModel.Task.choices], required=False
    )
    now = forms.ChoiceField(
        label=_("Now"),
        choices=[
            ("", _("in any state")),
            ("up", _("answers now")),
            ("asleep", _("asleep")),
            ("down", _("not answering")),
        ],
        required=False,
    )
    can = forms.MultipleChoiceField(
        label=_("It can"),
        choices=[(badge.value, badge.label) for badge in Badge if badge.value not in ("embedding", "rerank", "speech")],
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )
    sort = forms.ChoiceField(label=_("Order"), choices=list(SORTS.items()), required=False)

    @property
    def values(self) -> dict[str, Any]:
        """What was asked for, without the fields that are wrong."""
        self.is_valid()
        return {name: self.cleaned_data.get(name) or "" for name in self.fields}

    @property
    def narrows(self) -> bool:
        """Whether it leaves any model out on purpose."""
        values = self.values
        return any(values[name] for name in ("q", "task", "now", "can"))

    def select(self, entries: list[CatalogueEntry]) -> list[CatalogueEntry]:
        """Return the entries that fit, in the order that was asked for."""
        values = self.values
        fitting = [entry for entry in entries if _fits(entry, values)]
        return sorted(fitting, key=KEYS[values["sort"]])


def _fits(entry: CatalogueEntry, values: dict[str, Any]) -> bool:
    if values["task"] and entry.offer.task != values["task"]:
        return False
    if not {Badge(one) for one in values["can"]} <= set(entry.badges):
        return False
    if values["now"] and values["now"] != _state_of(entry):
        return False
    words = values["q"].casefold().split()
    text = " ".join((entry.name, *entry.offer.aliases, entry.good_for, entry.licence)).casefold()
    return all(word in text for word in words)


def _state_of(entry: CatalogueEntry) -> str:
    if entry.offer.state in (Liveness.UP, Liveness.UNSURE):
        return "up"
    return "asleep" if entry.offer.state is Liveness.ASLEEP else "down"
