"""The house rules as readers see them, and writing them."""

from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from portal.guide.models import HouseRules

ROW = 1  # the primary key of the only one
TEXTS = ("rules_ja", "rules_en", "contact_ja", "contact_en")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadableRules:
    """The rules in the language of the page, or in the other one if they have only that. Both texts are Markdown."""

    rules: str
    contact: str  # "": not set
    is_default: bool  # whether the company has not written its own yet
    changed_at: datetime | None


class RulesChanged(Exception):
    """Another operator changed the rules since the form was opened."""


def read_rules() -> ReadableRules:
    """Return what holds now: the company's rules, else ours, which say that they are not the company's. One query."""
    row = stored_rules()
    rules = in_page_language(row.rules_ja, row.rules_en)
    return ReadableRules(
        rules=rules or default_rules(),
        contact=in_page_language(row.contact_ja, row.contact_en),
        is_default=not rules,
        changed_at=row.changed_at if rules else None,
    )


def stored_rules() -> HouseRules:
    """Return the row, or an empty one that is not saved."""
    return HouseRules.objects.filter(pk=ROW).first() or HouseRules(pk=ROW)


@transaction.atomic
def write_rules(texts: dict[str, str], edition: int) -> HouseRules:
    """Save the texts, by the names of the row's fields. Raises RulesChanged unless `edition` is the stored one.

    What is stored already, as when it is sent twice, is saved.
    """
    # Created before it is locked, so that of two who write the first rules one waits for the other.
    HouseRules.objects.bulk_create([HouseRules(pk=ROW)], ignore_conflicts=True)
    row = HouseRules.objects.select_for_update().get(pk=ROW)
    if row.edition != edition:
        if all(getattr(row, name) == text for name, text in texts.items()):
            return row
        raise RulesChanged
    for name, text in texts.items():
        setattr(row, name, text)
    row.edition += 1
    row.save()
    return row


def in_page_language(ja: str, en: str) -> str:
    """Return the text in the language of the page, or the other one if there is only that."""
    return (ja or en) if (get_language() or "ja").startswith("ja") else (en or ja)


def default_rules() -> str:
    """Return rules that hold until the company writes its own: careful ones, which leave out nothing that is risky."""
    return _(
        "- **Do not enter** names or data of customers, personal data of colleagues, passwords, or anything that is"
        " marked confidential.\n"
        "- **Check every answer** before you use it. You are responsible for what you send, publish or decide.\n"
        "- **Ask a specialist** about law, tax, health and safety. A model sounds sure even when it is wrong.\n"
        "- If you are not sure whether something may be entered, leave it out, and ask."
    )
