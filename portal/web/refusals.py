"""The base class of refused requests, so that pages and the API answer all of them in the same way."""

from collections.abc import Mapping, Sequence
from typing import Self

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError


class Refused(Exception):
    """The request cannot be carried out; `sentence` says why, in the reader's language.

    `fields`: sentences by the field that they are about, "" for the whole. `code` names the reason where a class of
    refusals has several. `allowed` is False if another person may do it.
    """

    allowed = True

    def __init__(self, sentence: str, fields: Mapping[str, Sequence[str]] | None = None, *, code: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code
        self.fields = dict(fields or {})

    @classmethod
    def of(cls, error: ValidationError) -> Self:
        """Return the refusal for an error of a model's own validation."""
        found = error.message_dict if hasattr(error, "error_dict") else {NON_FIELD_ERRORS: error.messages}
        fields = {"" if name == NON_FIELD_ERRORS else name: list(sentences) for name, sentences in found.items()}
        return cls(" ".join(sentence for sentences in fields.values() for sentence in sentences), fields)
