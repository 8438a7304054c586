"""What people ask for and cannot have: one base, so that pages and the API say all of it alike."""

from collections.abc import Mapping, Sequence
from typing import Self

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError


class Refused(Exception):
    """What was asked cannot be done; `sentence` says why in the reader's language.

    `fields`: sentences by the field that they are about, "" for the whole. `allowed` False: somebody else might do it.
    """

    allowed = True

    def __init__(self, sentence: str, fields: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.fields = dict(fields or {})

    @classmethod
    def of(cls, error: ValidationError) -> Self:
        """Refuse for what a model's own validation found."""
        found = error.message_dict if hasattr(error, "error_dict") else {NON_FIELD_ERRORS: error.messages}
        fields = {"" if name == NON_FIELD_ERRORS else name: list(told) for name, told in found.items()}
        return cls(" ".join(sentence for told in fields.values() for sentence in told), fields)
