"""The operators' page about the company directory: how following it goes, and following it now."""

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
from portal.accounts.ldap import Directory, DirectoryError
from portal.accounts.models import DirectoryState, User
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.audit import tracking
from portal.web import posted_forms

# Two hours and what a run may take: of what is followed every hour, two are missing.
OVERDUE = timedelta(hours=2, minutes=15)


@operator_required
@require_safe
def directory(request: HttpRequest) -> HttpResponse:
    return render(request, "operations/directory.html", {"zone": zone_of(current_user(request)), **standing()})


def standing() -> dict[str, Any]:
    """How following it goes. `state` None: it was never followed."""
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
def follow(request: HttpRequest) -> HttpResponse:
    """At once, instead of within the hour. `force`: although most of our people would lose their access."""
    if settings.DIRECTORY is None:
        return redirect("operations-directory")  # which says that there is none
    force = "force" in request.POST and posted_forms.posted_choice(request, "force", "yes") == "yes"
    if follow_now(current_user(request), settings.DIRECTORY, force=force).problem:
        messages.error(request, _("Nothing was changed. What is wrong stands below."))
    else:
        messages.success(request, _("The directory was synchronised."))
    return redirect("operations-directory")


def follow_now(by: User, directory: Directory, *, force: bool) -> DirectoryState:
    """How it went; its `problem` says why nothing was changed. Blocks for as long as the directory needs."""
    permissions.check_access(by)
    with suppress(DirectoryError, directory_sync.SuspiciousChange):
        directory_sync.sync_directory(directory, force=force)
    state = DirectoryState.objects.get()
    tracking.record_event("directory.force" if force else "directory.follow", state, "directory", after=told(state))
    return state


def told(state: DirectoryState) -> dict[str, object]:
    """What an audit keeps of how it went."""
    return {"problem": state.problem} if state.problem else dict(state.outcome)
