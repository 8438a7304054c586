"""The pages of news: what was announced, what is new in this version, and the operators' form."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.decorators import operator_required
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.news import announcements, changelog
from portal.news.forms import AnnouncementForm
from portal.news.models import Announcement
from portal.web import posted_forms
from portal.web.editions import locked_if_posted

PER_PAGE = 20


@login_required
@require_safe
def news(request: HttpRequest) -> HttpResponse:
    """List what was announced to this person, the latest first; operators see what is not shown yet as well."""
    user, now = current_user(request), timezone.now()
    found = announcements.visible_announcements(user, now).prefetch_related("tenants")
    page = Paginator(found, PER_PAGE).get_page(request.GET.get("page"))
    rows = [
        announcements.readable(row, now, [tenant.name for tenant in row.tenants.all()] if user.is_staff else ())
        for row in page
    ]
    return render(request, "news/list.html", {"zone": zone_of(user), "page": page, "announcements": rows})


@login_required
@require_safe
def changes(request: HttpRequest) -> HttpResponse:
    return render(request, "news/changes.html", {"releases": changelog.read_releases()})


@login_required
@posted_forms.posted_from("news")
def close(request: HttpRequest, pk: int) -> HttpResponse:
    """Close the banner of news and return to the page where it was. Maintenance stays until its end."""
    user = current_user(request)
    shown = announcements.visible_announcements(user, timezone.now()).filter(level=Announcement.Level.INFO)
    announcements.close_banner(user, get_object_or_404(shown, pk=pk))
    back = request.POST.get("next", "")
    return redirect(back if url_has_allowed_host_and_scheme(back, {request.get_host()}) else "home")


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def new_announcement(request: HttpRequest) -> HttpResponse:
    return _edit(request, None)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_announcement(request: HttpRequest, pk: int) -> HttpResponse:
    return _edit(request, pk)


@operator_required
@posted_forms.only_posted
def remove_announcement(request: HttpRequest, pk: int) -> HttpResponse:
    get_object_or_404(Announcement, pk=pk).delete()
    messages.success(request, _("The announcement was deleted."))
    return redirect("news")


def _edit(request: HttpRequest, pk: int | None) -> HttpResponse:
    """Show the form with times in the operator's zone, and save what is posted as it should be."""
    zone = zone_of(current_user(request))
    # Locked before it is read, and before it is checked which others there are.
    with timezone.override(zone), locked_if_posted(request, announcements.lock_announcements):
        row = get_object_or_404(Announcement, pk=pk) if pk else Announcement()
        form = AnnouncementForm(posted_forms.posted_data(request), instance=row)
        if form.is_valid():
            announcements.save_announcement(form.save(commit=False), form.cleaned_data["tenants"])
            messages.success(request, _("Saved."))
            return redirect("news")
        return posted_forms.render_form(request, "news/edit.html", form, {"zone": zone, "pk": pk})
