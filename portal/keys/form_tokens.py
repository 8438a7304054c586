"""Forms that can be submitted once. A reload or a double click sends a form again; its token is valid only once."""

import secrets
from typing import Any

from django.contrib import messages
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.models import Session
from django.db import transaction
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from portal.web import posted_forms

OPEN = "open_forms"
# Tabs that a person may have open with the same form; the oldest is forgotten first.
KEPT = 10


def form_arguments(request: HttpRequest) -> dict[str, Any]:
    """Return what to make the form of a new key with: what was posted, else a new token for its field `token`."""
    if request.method == "POST":
        return {"data": request.POST}
    return {"initial": {"token": new_token(request.session)}}


def refuse_form(request: HttpRequest, form: Form, template: str, back: str, **context: Any) -> HttpResponse | None:
    """Return the answer to a form that makes no key; None for one that is valid and was submitted for the first time.

    That is the form itself until it is valid, and the page `back` if it was submitted before.
    """
    if not form.is_valid():
        return posted_forms.render_form(request, template, form, context)
    if redeem_token(request.session, form.cleaned_data["token"]):
        return None
    messages.warning(
        request,
        _(
            "No key was created: this form was sent before, or was open for too long. A key is shown only once. If you"
            " did not copy it, revoke it and create a new one."
        ),
    )
    return redirect(back)


def new_token(session: SessionBase) -> str:
    """Return a new token to put into a form."""
    text = secrets.token_urlsafe(12)
    session[OPEN] = [*session.get(OPEN, []), text][-KEPT:]
    return text


def redeem_token(session: SessionBase, text: str) -> bool:
    """Return whether this token is open, and close it. Of two requests at the same time one gets True."""
    with transaction.atomic():
        # Two posts of one form queue here: the row's lock, or on SQLite the transaction itself.
        list(Session.objects.select_for_update().filter(pk=session.session_key))
        stored = type(session)(session.session_key)
        still_open = stored.get(OPEN, [])
        if text not in still_open:
            return False
        stored[OPEN] = [other for other in still_open if other != text]
        stored.save()
    # The request's own copy is saved at its end and must not bring the token back.
    session[OPEN] = stored[OPEN]
    return True
