"""What is known of a model from its files, line by line for a page."""

from typing import Any

from django.utils.translation import gettext as _

from modelregistry.models import ServedModel
from portal.operations.templatetags.machines import gigabytes
from portal.web.templatetags.formatting import figure, short


def describe_files(model: ServedModel) -> list[tuple[str, str]]:
    """Return (label, value) of each known fact; none before the files were read."""
    report = getattr(model, "file_report", None)
    facts: dict[str, Any] = (report.facts if report else None) or {}
    lines = [
        (_("Architecture"), facts.get("architecture")),
        (_("Parameters"), format_number(facts.get("parameters"))),
        (_("Quantisation"), format_quantisation(facts)),
        (_("Weights on disk"), gigabytes(facts.get("weight_bytes"))),
        (_("Files with weights"), format_number(facts.get("files"))),
        (_("Context of the model"), format_tokens(facts.get("context"))),
        (_("Chat template"), (_("yes") if facts.get("has_chat_template") else _("no")) if facts else None),
        (_("Pooling"), facts.get("pooling")),
        (_("Layers"), format_number(facts.get("layers"))),
        (_("Vocabulary"), format_tokens(facts.get("vocabulary"))),
    ]
    return [(label, str(value)) for label, value in lines if value]


def format_number(value: int | None) -> str | None:
    return None if value is None else figure(value) if value < 1_000_000 else short(value)


def format_tokens(value: int | None) -> str | None:
    return None if value is None else _("%(tokens)s tokens") % {"tokens": figure(value)}


def format_quantisation(facts: dict[str, Any]) -> str | None:
    name, bits = facts.get("quantisation"), facts.get("bits_per_weight")
    if not name or not bits:
        return name
    return _("%(name)s, %(bits)s bits per weight") % {"name": name, "bits": f"{bits:.1f}"}
