"""The pages of seminars: to open one and see how it goes, and to join one."""

from typing import Any

import segno
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.safestring import SafeString
from django.utils.translation import pgettext
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.models import User
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.keys import model_access
from portal.keys.key_example import base_url, make_example
from portal.keys.lifecycle import KeyRefused
from portal.lessons import code_throttle, seminars
from portal.lessons.courses import all_courses
from portal.lessons.forms import JoinForm, SeminarForm
from portal.lessons.models import Seminar
from portal.lessons.seminars import SeminarRefused
from portal.web import posted_forms


def find_seminar(user: User, pk: int) -> Seminar:
    """Return a seminar that this person organises. Raises Http404."""
    return get_object_or_404(seminars.organised_by(user), pk=pk)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_seminar(request: HttpRequest) -> HttpResponse:
    user = current_user(request)
    if not seminars.tenants_to_open_for(user).exists():
        raise PermissionDenied
    form = SeminarForm(request.POST or None, user=user)
    if request.method == "POST" and form.is_valid():
        try:
            seminar = seminars.open_seminar(user, form.seminar(), timezone.now())
        except SeminarRefused as refusal:
            form.add_error(None, refusal.sentence)
        else:
            return redirect("seminar", seminar.pk)
    status = 400 if form.is_bound else 200
    return render(request, "lessons/new_seminar.html", {"form": form}, status=status)


@login_required
@never_cache
@require_safe
def seminar_page(request: HttpRequest, pk: int) -> HttpResponse:
    """Show the organiser how far the participants are; the page's script renews that."""
    seminar = find_seminar(current_user(request), pk)
    rows = seminars.read_participants(seminar)
    context = {
        **describe(request, seminar),
        "rows": rows,
        "with_key": sum(row.has_key for row in rows),
        "answered": sum(row.answered_at is not None for row in rows),
    }
    return render(request, "lessons/seminar.html", context)


@login_required
@never_cache
@require_safe
def seminar_sheet(request: HttpRequest, pk: int) -> HttpResponse:
    """Show what to print for the room: how to join, as text and as a QR code."""
    seminar = find_seminar(current_user(request), pk)
    if seminar.ended_at is not None:
        raise Http404
    return render(request, "lessons/sheet.html", describe(request, seminar))


def describe(request: HttpRequest, seminar: Seminar) -> dict[str, Any]:
    """Return what the organiser's pages show of a seminar. The link has the code in its fragment: no log keeps that."""
    address = base_url(request).removesuffix("/v1") + reverse("seminar-join")
    code = seminars.code_of(seminar)
    begins, ends = (at.astimezone(seminar.tenant.zone) for at in (seminar.begins_at, seminar.ends_at))
    return {
        "seminar": seminar,
        "course": all_courses()[seminar.course],
        "code": code,
        "join_address": address,
        "qr": qr_code(f"{address}#{code}"),
        # On paper, where "today" would soon be wrong.
        "day": date_format(begins, pgettext("day with year", "j M Y")),
        "hours": f"{begins:%H:%M} – {ends:%H:%M}",
        "zone": seminar.tenant.zone,
    }


def qr_code(text: str) -> SafeString:
    """Return the SVG, which has no style of its own."""
    return SafeString(segno.make(text, error="m").svg_inline(omitsize=True, svgclass="qr", lineclass=None))


@login_required
@posted_forms.only_posted
def end(request: HttpRequest, pk: int) -> HttpResponse:
    """End a seminar before its time."""
    seminars.end_seminar(find_seminar(current_user(request), pk), timezone.now())
    return redirect("seminar", pk)


@login_required
@never_cache
@sensitive_post_parameters("code")
@require_http_methods(["GET", "HEAD", "POST"])
def join(request: HttpRequest) -> HttpResponse:
    """Let a person join by the code, and show the key once. Of a link with the code the script fills it in."""
    user = current_user(request)
    if request.method != "POST":
        return render(request, "lessons/join.html", {"form": JoinForm()})
    form = JoinForm(request.POST)
    if not form.is_valid():
        return render(request, "lessons/join.html", {"form": form}, status=400)
    if wait := code_throttle.seconds_to_wait(request, user):
        form.add_error("code", code_throttle.sentence(wait))
        return render(request, "lessons/join.html", {"form": form}, status=429)
    try:
        participant, text = seminars.join_seminar(user, form.cleaned_data["code"], timezone.now())
    except (SeminarRefused, KeyRefused) as refusal:
        if refusal.code == "unknown-code":
            code_throttle.count_wrong_code(request, user)
        form.add_error("code", refusal.sentence)
        return render(request, "lessons/join.html", {"form": form}, status=400)
    key = participant.key
    offered = model_access.available_models(model_access.open_to_key(key)) if key else []
    context = {
        "seminar": participant.seminar,
        "course": all_courses()[participant.seminar.course],
        "key": key,
        "text": text,
        "example": make_example(request, offered, text) if text else None,
        "zone": zone_of(user),
    }
    return render(request, "lessons/joined.html", context)
