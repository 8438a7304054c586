"""Operators' page of one canary run, with the answers beside those of the reference, and its buttons."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from modelregistry.models import ServedModel
from portal.accounts.decorators import operator_required
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.canary import reports, running
from portal.canary.models import CanaryRun
from portal.web import posted_forms


@operator_required
@require_safe
def show_run(request: HttpRequest, pk: int) -> HttpResponse:
    run = get_object_or_404(CanaryRun.objects.select_related("model", "accepted_by"), pk=pk)
    context = {
        "zone": zone_of(current_user(request)),
        "run": run,
        "level": reports.level_of(run),
        "found": reports.describe_findings(run),
        "reference": reports.compared_run(run),
        "pairs": reports.pair_answers(run),
        "may_accept": not run.is_reference and running.may_accept(run),
    }
    return render(request, "operations/canary_run.html", context)


@operator_required
@posted_forms.only_posted
def accept(request: HttpRequest, pk: int) -> HttpResponse:
    """Take the answers of the run as right, without a question: another run can be accepted in its place."""
    run = get_object_or_404(CanaryRun.objects.select_related("model"), pk=pk)
    try:
        running.accept(run, current_user(request))
    except running.NotComplete:
        messages.error(
            request, _("Only a run with an answer to every prompt, and without errors, can be accepted."), "incomplete"
        )
    else:
        messages.success(request, _("Later answers of %(model)s are compared with these.") % {"model": run.model.name})
    return redirect("operations-canary", run.pk)


@operator_required
@posted_forms.only_posted
def request_run(request: HttpRequest, name: str) -> HttpResponse:
    model = get_object_or_404(ServedModel, name=name, task=ServedModel.Task.CHAT)
    reports.request_run(current_user(request), model)
    messages.success(request, _("%(model)s is asked the test prompts within minutes.") % {"model": model.name})
    return redirect("operations-model", model.name)
