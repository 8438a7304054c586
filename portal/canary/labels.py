"""What people call the canary's findings."""

from collections.abc import Iterable

from django.utils.translation import gettext_lazy as _

from portal.canary import judging

FINDINGS = {
    judging.REPEATED_SIGN: _("one sign repeated without end"),
    judging.EMPTY: _("empty answers"),
    judging.ENDLESS: _("answers without an end"),
    judging.LOOP: _("word loops"),
    judging.LANGUAGE: _("answers in the wrong language"),
    judging.TEMPLATE: _("control tokens of the chat template in answers"),
    judging.ERROR: _("errors instead of answers"),
    judging.DRIFT: _("other answers than before, with the same engine and files"),
    judging.SLOW: _("at most half the usual speed"),
}


def label_findings(codes: Iterable[str]) -> list[str]:
    """Return the findings in words; of a newer version that was put back, their codes."""
    return [str(FINDINGS.get(code, code)) for code in codes]
