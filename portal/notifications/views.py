"""The page of one's own notices."""

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_safe

from portal.accounts.models import User
from portal.accounts.timezones import zone_of
from portal.notifications import inbox
from portal.web import posted_forms

PER_PAGE = 50


@login_required
@require_safe
def notice_list(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    page = Paginator(inbox.notifications_of(request.user), PER_PAGE).get_page(request.GET.get("page"))
    context = {"page": page, "notices": inbox.notification_rows(page), "zone": zone_of(request.user)}
    return render(request, "notifications/list.html", context)


@login_required
@require_safe
def open_notice(request: HttpRequest, pk: int) -> HttpResponse:
    """Mark a notice as read and redirect to its page. A repetition changes nothing, so a link is enough."""
    assert isinstance(request.user, User)
    notices = inbox.notifications_of(request.user).filter(pk=pk)
    notice = get_object_or_404(notices)
    inbox.mark_read(notices, timezone.now())
    # Our own code wrote it, as a path on this site; "//" would lead to another site.
    is_here = notice.path.startswith("/") and not notice.path.startswith("//")
    return redirect(notice.path if is_here else "notices")


@login_required
@posted_forms.only_posted
def read_all(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    inbox.mark_read(inbox.notifications_of(request.user), timezone.now())
    return redirect("notices")
