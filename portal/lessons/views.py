"""The courses, and how far one is oneself."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from portal.accounts.permissions import current_user, own_tenants
from portal.accounts.timezones import zone_of
from portal.keys import playground_models
from portal.keys.key_example import base_url
from portal.keys.playground_links import playground_link
from portal.lessons import progress, seminars
from portal.lessons.courses import all_courses
from portal.lessons.models import CoursesDeclined
from portal.lessons.samples import make_step_samples
from portal.web import posted_forms

MOST_SEMINARS = 50  # that are listed
MOST_PAST = 20


@login_required
@never_cache
@require_safe
def course_list(request: HttpRequest) -> HttpResponse:
    user, now = current_user(request), timezone.now()
    context = {
        "courses": progress.read_progress(user),
        "seminars": seminars.seminars_of(user, now),
        "organised": seminars.organised_by(user).filter(ended_at=None).order_by("begins_at")[:MOST_SEMINARS],
        "past": seminars.organised_by(user).exclude(ended_at=None).order_by("-begins_at")[:MOST_PAST],
        "may_open": seminars.tenants_to_open_for(user).exists(),
        "zone": zone_of(user),
        "declined": CoursesDeclined.objects.filter(user=user).exists(),
    }
    return render(request, "lessons/list.html", context)


@login_required
@never_cache
@require_safe
def course_page(request: HttpRequest, course: str) -> HttpResponse:
    """Show the steps of a course, each with what the person has to paste for it."""
    user = current_user(request)
    found = all_courses().get(course)
    if found is None:
        raise Http404
    mine = progress.progress_in(found, progress.find_steps([user])[user.pk])
    choices = playground_models.model_choices(list(own_tenants(user)))
    offered = {task: [one.offer for one in some] for task, some in choices.items()}
    samples = make_step_samples(offered, base_url(request))
    context = {
        "progress": mine,
        "rows": [
            {
                "state": state,
                "sample": samples.get(state.step.sample),
                "try": playground_link(prompt=state.step.text.prompt.strip()) if state.step.text.prompt else "",
            }
            for state in mine.steps
        ],
        "zone": zone_of(user),
    }
    return render(request, "lessons/course.html", context)


@login_required
@posted_forms.only_posted
def change_interest(request: HttpRequest) -> HttpResponse:
    """Hide the courses from one's own home page, or show them again."""
    declined = posted_forms.posted_choice(request, "interest", "off", "on") == "off"
    progress.decline(current_user(request), declined=declined)
    if declined:
        messages.success(request, _("The courses are no longer shown here. You find them under “Learn” at any time."))
        return redirect("home")
    messages.success(request, _("The home page shows how far you are again."))
    return redirect("lessons")
