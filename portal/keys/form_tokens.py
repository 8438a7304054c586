"""Forms that count once. A reload or a double click sends a form again; its ticket is good for one time only."""

import secrets

from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.models import Session
from django.db import transaction

OPEN = "open_forms"
# Tabs that a person may have open with the same form; the oldest is forgotten first.
KEPT = 10


def new_token(session: SessionBase) -> str:
    """Return a new ticket to put into a form."""
    text = secrets.token_urlsafe(12)
    session[OPEN] = [*session.get(OPEN, []), text][-KEPT:]
    return text


def redeem_token(session: SessionBase, text: str) -> bool:
    """Return whether this ticket is open; it no longer is afterwards. Of two at the same time one gets True."""
    with transaction.atomic():
        # Two posts of one form queue here: the row's lock, or on SQLite the transaction itself.
        list(Session.objects.select_for_update().filter(pk=session.session_key))
        stored = type(session)(session.session_key)
        still_open = stored.get(OPEN, [])
        if text not in still_open:
            return False
        stored[OPEN] = [other for other in still_open if other != text]
        stored.save()
    # The request's own copy is saved at its end and must not bring the ticket back.
    session[OPEN] = stored[OPEN]
    return True
