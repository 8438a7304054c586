"""The operators' page about the company directory: the state of its synchronisation, and the button to start it."""

from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from portal.accounts import directory_sync, permissions
from portal.accounts.decorators import operator_required
from portal.accounts.ldap import DirectoryError, DirectorySettings
from portal.accounts.models import DirectoryState, User
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.audit import tracking
from portal.web import posted_forms

# Two hours, and the time of a run: of the hourly runs, two are missing.
OVERDUE = timedelta(hours=2, minutes=15)


@operator_required
@require_safe
def directory(request: HttpRequest) -> HttpResponse:
    return render(request, "operations/directory.html", {"zone": zone_of(current_user(request)), **read_status()})


def read_status() -> dict[str, Any]:
    """Return the state of the synchronisation. `state` None: it never ran."""
    state, now = DirectoryState.objects.first(), timezone.now()
    people = User.objects.exclude(directory_id=None)
    return {
        "configured": settings.DIRECTORY,
        "state": state,
        "overdue": state is None or now - state.tried_at > OVERDUE,
        "active": people.filter(is_active=True).count(),
        "inactive": people.filter(is_active=False).count(),
    }


@operator_required
@posted_forms.only_posted
def synchronise(request: HttpRequest) -> HttpResponse:
    """Synchronise now instead of within the hour. `force`: even if most people would lose their access."""
    if settings.DIRECTORY is None:
        return redirect("operations-directory")  # which shows that there is none
    force = "force" in request.POST and posted_forms.posted_choice(request, "force", "yes") == "yes"
    if synchronise_now(current_user(request), settings.DIRECTORY, force=force).problem:
        messages.error(request, _("Nothing was changed. The problem is shown below."))
    else:
        messages.success(request, _("The directory was synchronised."))
    return redirect("operations-directory")


def synchronise_now(by: User, directory: DirectorySettings, *, force: bool) -> DirectoryState:
    """Synchronise and return the result; its `problem` says why nothing was changed. Blocks on the directory."""
    permissions.check_access(by)
    with suppress(DirectoryError, directory_sync.SuspiciousChange):
        directory_sync.sync_directory(directory, force=force)
    state = DirectoryState.objects.get()
    tracking.record_event(
        "directory.force" if force else "directory.sync", state, "directory", after=audit_values(state)
    )
    return state


def audit_values(state: DirectoryState) -> dict[str, object]:
    """Return what the audit log keeps of a synchronisation."""
    return {"problem": state.problem} if state.problem else dict(state.outcome)
