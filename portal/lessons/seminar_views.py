"""The pages of seminars: to open and change one and see how it goes, to name people, and to join one."""

from collections.abc import Mapping
from typing import Any

import segno
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.models import User
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.keys import model_access
from portal.keys.key_example import base_url, make_example
from portal.keys.lifecycle import KeyRefused
from portal.lessons import code_throttle, invitations, progress, seminars
from portal.lessons.courses import all_courses
from portal.lessons.forms import JoinForm, NamesForm, PlanForm, SeminarForm, TakeBackForm, initial_plan
from portal.lessons.models import Seminar, SeminarParticipant
from portal.lessons.seminars import SeminarRefused
from portal.web import posted_forms
from portal.web.editions import locked_if_posted
from portal.web.row_locks import lock_row
from portal.web.templatetags.formatting import listed


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
    form = SeminarForm(posted_forms.posted_data(request), user=user)
    if form.is_valid():
        try:
            seminar = seminars.open_seminar(user, form.seminar(), timezone.now())
        except SeminarRefused as refusal:
            add_refusal(form, refusal)
        else:
            return redirect("seminar", seminar.pk)
    return posted_forms.render_form(request, "lessons/new_seminar.html", form)


def add_refusal(form: PlanForm, refusal: SeminarRefused) -> None:
    """Let the fields that it is about say why, or the form as a whole."""
    for name, sentences in (refusal.fields or {"": [refusal.sentence]}).items():
        form.add_error(name if name in form.fields else None, list(sentences))


@login_required
@never_cache
@require_safe
def seminar_page(request: HttpRequest, pk: int) -> HttpResponse:
    """Show the organiser how far the participants are; the page's script renews that."""
    return render_seminar(request, find_seminar(current_user(request), pk), NamesForm())


def render_seminar(request: HttpRequest, seminar: Seminar, names: NamesForm, status: int = 200) -> HttpResponse:
    rows = seminars.read_participants(seminar)
    present = [row for row in rows if not row.is_out]
    shows_names = seminars.shows_names(seminar, timezone.now())
    counts = {
        "with_key": sum(row.has_key for row in present),
        "answered": sum(row.answered_at is not None for row in present),
    }
    shown: Mapping[str, int | None] = counts
    if not shows_names:
        shown = {name: progress.shown_count(people, len(present)) for name, people in counts.items()}
    context = {
        **describe(request, seminar),
        **shown,
        "rows": rows,
        "joined": len(present),
        "shows_names": shows_names,
        "awaited": [] if seminar.ended_at else invitations.awaited(seminar),
        "names": names,
    }
    return render(request, "lessons/seminar.html", context, status=status)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Change a seminar that is not over."""
    user = current_user(request)
    with locked_if_posted(request, lambda: lock_row(Seminar, pk)):
        seminar = find_seminar(user, pk)
        if seminar.ended_at is not None:
            raise Http404
        form = PlanForm(posted_forms.posted_data(request), initial=initial_plan(seminar))
        if form.is_valid():
            try:
                seminars.change_seminar(user, seminar, timezone.now(), **form.plan(seminar.tenant))
            except SeminarRefused as refusal:
                add_refusal(form, refusal)
            else:
                messages.success(request, _("Saved."))
                return redirect("seminar", seminar.pk)
    return posted_forms.render_form(request, "lessons/edit_seminar.html", form, {"seminar": seminar})


@login_required
@posted_forms.only_posted
def name_people(request: HttpRequest, pk: int) -> HttpResponse:
    """Name people who may join without the code. Names that mean no one stay in the field."""
    user = current_user(request)
    seminar = find_seminar(user, pk)
    form = NamesForm(request.POST)
    if not form.is_valid():
        return render_seminar(request, seminar, form, 400)
    try:
        found = invitations.find_people(seminar, invitations.split_names(form.cleaned_data["names"]))
        naming = invitations.name_people(user, seminar, found.people)
    except SeminarRefused as refusal:
        form.add_error("names", refusal.sentence)
        return render_seminar(request, seminar, form, 400)
    say_who_is_invited(request, naming)
    left = [*found.unknown, *found.ambiguous]
    if not left:
        return redirect("seminar", pk)
    rest = NamesForm({"names": "\n".join(left)})
    for sentence in refused_names(found):
        rest.add_error("names", sentence)
    return render_seminar(request, seminar, rest, 400)


def say_who_is_invited(request: HttpRequest, naming: invitations.Naming) -> None:
    """Say how many are invited now, who of them was let back, and who was there before."""
    if naming.invited:
        number = len(naming.invited)
        sentence = ngettext("%(number)d person is invited.", "%(number)d people are invited.", number)
        messages.success(request, sentence % {"number": number}, "invited")
    if naming.let_back:
        names = listed(map(str, naming.let_back))
        messages.info(
            request,
            _("Their key had been taken back; now they can join again, with a new key: %(names)s") % {"names": names},
            "let-back",
        )
    if naming.already:
        names = listed(map(str, naming.already))
        messages.info(request, _("Already invited or taking part: %(names)s") % {"names": names}, "already")


def refused_names(found: invitations.FoundPeople) -> list[str]:
    """Return the sentences about names that were not taken."""
    sentences = []
    if found.unknown:
        sentences.append(
            _("Not found among those who may join: %(names)s. People have an account once they have signed in.")
            % {"names": listed(found.unknown)}
        )
    if found.ambiguous:
        sentences.append(
            _("Several people have this name; enter the user name: %(names)s") % {"names": listed(found.ambiguous)}
        )
    return sentences


@login_required
@posted_forms.only_posted
def withdraw_name(request: HttpRequest, pk: int, person_pk: int) -> HttpResponse:
    """Take a person off the list who has not joined."""
    user = current_user(request)
    seminar = find_seminar(user, pk)
    invitations.withdraw_name(user, seminar, get_object_or_404(User, pk=person_pk))
    return redirect("seminar", pk)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def take_back(request: HttpRequest, pk: int, participant_pk: int) -> HttpResponse:
    """Ask before a participant's key is revoked, and revoke it."""
    user = current_user(request)
    seminar = find_seminar(user, pk)
    rows = SeminarParticipant.objects.select_related("user", "seminar__tenant", "key__tenant", "key__user")
    participant = get_object_or_404(rows, seminar=seminar, pk=participant_pk)
    form = TakeBackForm(posted_forms.posted_data(request))
    if form.is_valid():
        try:
            seminars.take_back_key(user, participant, form.cleaned_data["reason"])
        except SeminarRefused as refusal:
            messages.error(request, refusal.sentence)
        return redirect("seminar", pk)
    if participant.taken_back_at is not None:
        return redirect("seminar", pk)
    context = {"seminar": seminar, "participant": participant}
    return posted_forms.render_form(request, "lessons/take_back.html", form, context)


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
    return render_joined(request, participant, text)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def join_as_named(request: HttpRequest, pk: int) -> HttpResponse:
    """Let a person join without the code that the organiser named, and show the key once."""
    user, now = current_user(request), timezone.now()
    seminar = get_object_or_404(seminars.seminars_known_to(user, now), pk=pk)
    context: dict[str, Any] = {"seminar": seminar, "opens": seminar.begins_at - seminars.EARLY, "zone": zone_of(user)}
    context["is_early"] = now < context["opens"]
    context["is_out"] = seminar.is_out  # type: ignore[attr-defined]  # an annotation
    if request.method != "POST":
        if context["is_out"]:
            context["refusal"] = seminars.taken_back_sentence()
        return render(request, "lessons/join_named.html", context)
    try:
        participant, text = seminars.join_as_named(user, seminar, now)
    except (SeminarRefused, KeyRefused) as refusal:
        return render(request, "lessons/join_named.html", {**context, "refusal": refusal.sentence}, status=400)
    return render_joined(request, participant, text)


def render_joined(request: HttpRequest, participant: SeminarParticipant, text: str) -> HttpResponse:
    """Show the key, once; `text` is "" for who joined before."""
    key = participant.key
    offered = model_access.available_models(model_access.open_to_key(key)) if key else []
    context = {
        "seminar": participant.seminar,
        "course": all_courses()[participant.seminar.course],
        "key": key,
        "text": text,
        "example": make_example(request, offered, text) if text else None,
        "zone": zone_of(current_user(request)),
    }
    return render(request, "lessons/joined.html", context)
