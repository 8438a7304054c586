"""What an operator may not mean by publishing a use case for the whole company. The page asks once before it does."""

from django.utils.translation import gettext as _

from portal.use_cases.models import UseCase
from portal.web.cautions import Caution


def find_cautions(case: UseCase) -> list[Caution]:
    """Return what to ask about before the whole company sees the case: no page takes that back."""
    if case.is_company_wide:
        return []
    sentence = _(
        "Everyone in the company will see it, and no page can take that back. From then on only operators decide about "
        "it, no longer the champions and admins of its tenant."
    )
    return [Caution("company-wide", sentence)]
