"""Operators' pages for hosts, models and replicas. Others are refused at every address alike."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from modelregistry.engines.presets import PRESETS
from modelregistry.engines.registry import external_engines
from modelregistry.fit import estimate
from modelregistry.hosts import find_removal_obstacle
from modelregistry.models import Host, LogTail, Replica, ServedModel
from modelregistry.overview import ALIVE
from portal.accounts.decorators import operator_required
from portal.accounts.models import DirectoryState
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.operations import actions
from portal.operations.callers import Callers, callers, callers_of
from portal.operations.file_facts import describe_files
from portal.operations.forms import HostForm, ServedModelForm, visible_to
from portal.operations.live import read_first_tokens, request_log
from portal.operations.model_history import history_of
from portal.operations.overview import ModelView, model_view, overview, with_all
from portal.usage.models import UsageSetAside
from portal.web import posted_forms


@operator_required
@require_safe
def everything(request: HttpRequest) -> HttpResponse:
    now, zone = timezone.now(), zone_of(current_user(request))
    seen = overview(now, read_first_tokens(now))
    trouble = DirectoryState.objects.exclude(problem="").first() if settings.DIRECTORY else None
    context = {
        "zone": zone,
        "now": now,
        "overview": seen,
        "directory_trouble": trouble,
        "set_aside": UsageSetAside.objects.order_by("host"),
    }
    return render(request, "operations/overview.html", context)


@operator_required
@require_safe
def one_model(request: HttpRequest, name: str) -> HttpResponse:
    now, zone = timezone.now(), zone_of(current_user(request))
    model = get_object_or_404(
        with_all(ServedModel.objects.select_related("host").prefetch_related("trials__host")), name=name
    )
    context = {
        "zone": zone,
        "now": now,
        "row": model,
        "model": model_view(model, now, read_first_tokens(now).get(name)),
        "facts": describe_files(model),
        "tenants": visible_to(model),
        "limits": limits(model),
        "history": history_of(model),
        "log": asked_log(model, request.GET.get("log", ""), now),
    }
    return render(request, "operations/model.html", context)


def limits(model: ServedModel) -> list[tuple[str, float]]:
    """Return the time-outs, in seconds, that it has of its own."""
    names = ("connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout")
    own = [(model._meta.get_field(name), getattr(model, name)) for name in names]
    return [(str(field.verbose_name), value) for field, value in own if value is not None]  # type: ignore[union-attr]


def asked_log(model: ServedModel, number: str, now: datetime) -> LogTail | None:
    """What is known of the log of the replica that was asked for; asks its supervisor to keep it up to date."""
    replica = model.replica_set.filter(pk=int(number)).first() if number.isdecimal() and len(number) < 19 else None
    if replica is None:
        return None
    request_log(replica.pk, now)
    return LogTail.objects.filter(replica=replica).first() or LogTail(replica=replica)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def new_model(request: HttpRequest) -> HttpResponse:
    preset = PRESETS.get(request.GET.get("preset", ""))
    form = ServedModelForm(request.POST or None, initial=preset.fields() if preset else None)
    said = _("%(model)s is registered and is being started.")
    return filled_in(request, form, said, {"presets": PRESETS.values(), "preset": preset})


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_model(request: HttpRequest, name: str) -> HttpResponse:
    model = get_object_or_404(ServedModel, name=name)
    form = ServedModelForm(request.POST or None, instance=model)
    return filled_in(request, form, _("%(model)s is changed."), {})


def filled_in(request: HttpRequest, form: ServedModelForm, said: str, context: dict[str, Any]) -> HttpResponse:
    """Return the form until it is right, with what the model would take.

    As soon as that was asked or it does not fit.
    """
    context |= {"form": form, "name": form.initial.get("name", "")}
    if request.method == "POST" and form.is_valid():
        expected, asked = estimate(form.instance), "preview" in request.GET
        refused = not asked and form.takes_other_memory and not (expected is None or expected.fits)
        refused = refused and not form.cleaned_data["overcommit"]
        if not (asked or refused) and (model := form.carry_out(current_user(request))):
            messages.success(request, said % {"model": model.name})
            return redirect("operations-model", model.name)
        form.refused = refused
        context |= {"estimate": expected, "refused": refused, "asked": asked or refused}
    return render(request, "operations/edit.html", context)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_host(request: HttpRequest, pk: int) -> HttpResponse:
    host = get_object_or_404(Host.objects.select_related("report"), pk=pk)
    before = host.address, host.maintenance
    form = HostForm(request.POST or None, instance=host)
    if request.method == "POST" and form.is_valid():
        address, maintenance = form.cleaned_data["address"], form.cleaned_data["maintenance"]
        verb = "maintenance" if maintenance and not before[1] else "move" if address != before[0] else ""
        if verb and "confirmed" not in request.POST and (hit := models_on(host)):
            return render(request, "operations/ask_host.html", {"host": host, "form": form, "verb": verb, "hit": hit})
        if form.carry_out(current_user(request)):
            messages.success(request, _("%(host)s is changed.") % {"host": host.name})
            return redirect("operations")
    report = getattr(host, "report", None)
    context = {
        "host": host,
        "form": form,
        "models": host.models.order_by("name"),
        "needed": find_removal_obstacle(host),
        "problems": report.problems if report else [],
    }
    return render(request, "operations/host.html", context)


def models_on(host: Host) -> list[tuple[ModelView, Callers]]:
    """Return the models whose engines on this host would end, by name, with those who called them of late."""
    now = timezone.now()
    running = Replica.objects.filter(host=host, state__in=ALIVE).exclude(model__engine__in=external_engines())
    served = list(with_all(ServedModel.objects.filter(pk__in=running.values("model")).order_by("name")))
    called = callers_of([model.name for model in served], now)
    return [(model_view(model, now, None), called[model.name]) for model in served]


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def remove_host(request: HttpRequest, pk: int) -> HttpResponse:
    host = get_object_or_404(Host, pk=pk)
    if request.method != "POST":
        return render(request, "operations/remove_host.html", {"host": host, "needed": find_removal_obstacle(host)})
    try:
        actions.remove_host(current_user(request), host)
    except actions.ActionRefused as refusal:
        messages.error(request, refusal.sentence)
        return redirect("operations-host", host.pk)
    messages.success(request, _("%(host)s is removed.") % {"host": host.name})
    return redirect("operations")


@operator_required
@posted_forms.only_posted
def start(request: HttpRequest, name: str) -> HttpResponse:
    """Ask nothing: it can be undone."""
    model = get_object_or_404(ServedModel, name=name)
    return after(
        request, name, lambda: actions.start_model(current_user(request), model), _("%(model)s is being started.")
    )


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def stop(request: HttpRequest, name: str) -> HttpResponse:
    model = get_object_or_404(ServedModel, name=name)
    if request.method == "POST":
        said = _("%(model)s takes no new requests; its engines end when those that run are finished.")
        return after(request, name, lambda: actions.stop_model(current_user(request), model), said)
    return ask(request, model, "stop")


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def restart(request: HttpRequest, name: str) -> HttpResponse:
    model = get_object_or_404(ServedModel, name=name)
    if request.method == "POST":
        seen = request.POST.get("generation", "")
        said = _("%(model)s is being restarted; requests that run are finished first.")
        return after(
            request,
            name,
            lambda: actions.restart_model(
                current_user(request), model, seen=int(seen) if re.fullmatch("[0-9]{1,9}", seen) else None
            ),
            said,
        )
    return ask(request, model, "restart")


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def unregister(request: HttpRequest, name: str) -> HttpResponse:
    model = get_object_or_404(ServedModel, name=name)
    if request.method == "POST":
        return after(
            request,
            name,
            lambda: actions.unregister_model(current_user(request), model),
            _("%(model)s is unregistered."),
        )
    return ask(request, model, "unregister")


def ask(request: HttpRequest, model: ServedModel, verb: str) -> HttpResponse:
    """Return the page that names what is to happen and whom it hits."""
    now = timezone.now()
    view = model_view(with_all(ServedModel.objects.all()).get(pk=model.pk), now, None)
    context = {"row": model, "model": view, "verb": verb, "callers": callers(model.name, now)}
    return render(request, "operations/ask.html", context)


def after(request: HttpRequest, name: str, act: Callable[[], object], said: str) -> HttpResponse:
    """Do it, say so (or why not), and go to where the model is shown."""
    try:
        act()
    except actions.ActionRefused as refusal:
        messages.error(request, refusal.sentence)
    else:
        messages.success(request, said % {"model": name})
    known = ServedModel.objects.filter(name=name).exists()
    return redirect("operations-model", name) if known else redirect("operations")
