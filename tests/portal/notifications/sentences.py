"""What a notice says, in one language."""

from typing import Any

from django.utils.translation import override

from portal.notifications.types import KINDS


def title(kind: str, language: str, **facts: Any) -> str:
    with override(language):
        return KINDS[kind].title(facts)


def text(kind: str, language: str, **facts: Any) -> str:
    with override(language):
        return KINDS[kind].text(facts)
