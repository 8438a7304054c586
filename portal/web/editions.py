"""Forms of rows that several people may change: of two who had the same one open, the second learns of the first.

Without it the second would undo what the first has saved, of which they know nothing. A form shows which edition of the
row it was made of, and takes what is posted only for the same one. The row is locked before it is read for that.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.http import HttpRequest
from django.utils.translation import gettext as _

if TYPE_CHECKING:
    Base = forms.Form
else:
    Base = object  # it is mixed into forms of both kinds


class EditionForm(Base):
    """What is mixed into a form, before its class, that notices what others saved since it was shown.

    Its page has `_edition.html` in it. What is posted without an edition is taken: programs that fill in a form change
    what they mean to.
    """

    @property
    def edition(self) -> str:
        """A digest of all that the form shows of the row; "": it is for a new one."""
        instance = getattr(self, "instance", None)
        if not self.initial or (instance is not None and instance.pk is None):
            return ""
        hidden = {name for name, field in self.fields.items() if isinstance(field.widget, forms.PasswordInput)}
        shown = sorted((name, _plain(value)) for name, value in self.initial.items() if name not in hidden)
        return hashlib.sha256(repr(shown).encode()).hexdigest()

    @property
    def shown_edition(self) -> str:
        """That of the page: once posted, it stays what the person has seen."""
        return str(self.data.get("edition", "")) if self.is_bound else self.edition

    def full_clean(self) -> None:
        super().full_clean()
        if self.is_bound:
            self.check_edition(self)

    def check_edition(self, stored: "EditionForm") -> None:
        """Add an error unless the page showed the edition of `stored`, a form of the row as it is now.

        What is posted twice is stored already when it comes again: that is no other person's, and is taken.
        """
        if self.shown_edition and self.shown_edition != stored.edition and self._would_change(stored):
            sentence = _(
                "Another person saved this after you opened it, so nothing was saved now. Open the page again, and add"
                " your changes."
            )
            self.add_error(None, ValidationError(sentence, code="changed-meanwhile"))

    def _would_change(self, stored: "EditionForm") -> bool:
        """Return whether what was posted differs from what is stored, apart from secrets, which no edition covers."""
        return any(
            field.has_changed(stored.get_initial_for_field(field, name), self[name].data)
            for name, field in self.fields.items()
            if not isinstance(field.widget, forms.PasswordInput)
        )


def _plain(value: Any) -> Any:
    """Return the value so that it reads the same whenever it is read."""
    if isinstance(value, models.Model):
        return value.pk
    if isinstance(value, list | tuple | models.QuerySet):
        return sorted((_plain(one) for one in value), key=repr)
    return str(value)


@contextmanager
def locked_if_posted(request: HttpRequest, lock: Callable[[], object]) -> Iterator[None]:
    """Hold a lock while a form is taken: within, its row is read. A page that only shows the form waits for no one."""
    if request.method != "POST":
        yield
        return
    with transaction.atomic():
        lock()
        yield
