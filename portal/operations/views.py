"""Operators' pages for hosts, models and replicas. Other people are refused at every address."""

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

from modelregistry.awake_hours import IDLE_AFTER
from modelregistry.database_clock import read_now
from modelregistry.engines.presets import PRESETS
from modelregistry.engines.registry import external_engines
from modelregistry.evictions import read_evictions
from modelregistry.fit import estimate
from modelregistry.hosts import find_removal_obstacle
from modelregistry.models import Host, LogTail, Replica, ServedModel
from modelregistry.moves import read_moves
from modelregistry.overview import ALIVE
from modelregistry.routes import presets_of
from modelregistry.sampling import describe_sampling
from portal.accounts.decorators import operator_required
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.canary.reports import read_canary
from portal.operations import actions
from portal.operations.attention import read_attention
from portal.operations.callers import Callers, count_callers, count_callers_by_model
from portal.operations.file_facts import describe_files
from portal.operations.forms import HostForm, ServedModelForm, permitted_tenants
from portal.operations.live import read_first_tokens, request_log
from portal.operations.loops import read_loops
from portal.operations.model_history import read_history
from portal.operations.overview import ModelView, model_view, prefetch_models, read_host_overview, read_overview
from portal.usage.loop_rates import LEAST_ANSWERS
from portal.web import posted_forms
from portal.web.editions import locked_if_posted
from portal.web.row_locks import lock_row


@operator_required
@require_safe
def show_overview(request: HttpRequest) -> HttpResponse:
    now, zone = read_now(), zone_of(current_user(request))
    overview = read_overview(now, read_first_tokens(now))
    context = {
        "zone": zone,
        "now": now,
        "overview": overview,
        "attention": read_attention(overview, now),
        "is_backed_up": settings.BACKUP_MAX_AGE is not None,
    }
    return render(request, "operations/overview.html", context)


@operator_required
@require_safe
def show_model(request: HttpRequest, name: str) -> HttpResponse:
    now, zone = read_now(), zone_of(current_user(request))
    model = get_object_or_404(
        prefetch_models(ServedModel.objects.select_related("host").prefetch_related("trials__host")), name=name
    )
    context = {
        "zone": zone,
        "now": now,
        "row": model,
        "model": model_view(model, now, read_first_tokens(now).get(name)),
        "facts": describe_files(model),
        "tenants": permitted_tenants(model),
        "timeouts": own_timeouts(model),
        "sampling": describe_sampling(presets_of(model)),
        "may_calm": model.task == ServedModel.Task.CHAT and actions.calmer_sampling(model) != model.sampling,
        "idle_outside_hours": model.idle_after or IDLE_AFTER,
        "history": read_history(model),
        "evictions": read_evictions(model=model),
        "moves": read_moves(model=model),
        "loops": read_loops(model, now) if model.task == ServedModel.Task.CHAT else None,
        "least_answers": LEAST_ANSWERS,
        "asked_by_itself": settings.CANARY_HOUR is not None,
        "canary": read_canary(model) if model.task == ServedModel.Task.CHAT else None,
        "log": request_log_tail(model, request.GET.get("log", ""), now),
    }
    return render(request, "operations/model.html", context)


def own_timeouts(model: ServedModel) -> list[tuple[str, float]]:
    """Return the model's own time-outs, in seconds, with their labels."""
    names = ("connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout")
    own = [(model._meta.get_field(name), getattr(model, name)) for name in names]
    return [(str(field.verbose_name), value) for field, value in own if value is not None]  # type: ignore[union-attr]


def request_log_tail(model: ServedModel, number: str, now: datetime) -> LogTail | None:
    """Return the known end of a replica's log, and request its supervisor to keep it up to date."""
    replica = model.replica_set.filter(pk=int(number)).first() if number.isdecimal() and len(number) < 19 else None
    if replica is None:
        return None
    request_log(replica.pk, now)
    return LogTail.objects.filter(replica=replica).first() or LogTail(replica=replica)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def new_model(request: HttpRequest) -> HttpResponse:
    """Show and take the form of a new model, filled from a preset (?preset=) or for an engine elsewhere (?engine=)."""
    preset = PRESETS.get(request.GET.get("preset", ""))
    engine = request.GET.get("engine", "")
    chosen = {"engine": engine} if engine in external_engines() else {}
    initial = {**preset.fields(), "name": preset.key} if preset else chosen
    form = ServedModelForm(posted_forms.posted_data(request), initial=initial)
    done = _("%(model)s is registered and is being started.")
    context = {"presets": PRESETS.values(), "preset": preset, "external": bool(chosen)}
    return handle_model_form(request, form, done, context)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_model(request: HttpRequest, name: str) -> HttpResponse:
    model = get_object_or_404(ServedModel, name=name)
    form = ServedModelForm(posted_forms.posted_data(request), instance=model)
    return handle_model_form(request, form, _("%(model)s is changed."), {})


def handle_model_form(request: HttpRequest, form: ServedModelForm, done: str, context: dict[str, Any]) -> HttpResponse:
    """Save a valid form, say `done` and go to the model; otherwise return the page of the form.

    The page shows what the model would take if that was requested or if it does not fit.
    """
    context |= {"name": form.initial.get("name", "") if form.instance.pk else ""}
    if request.method == "POST" and form.is_valid():
        expected, preview = estimate(form.instance), "preview" in request.GET
        refused = not preview and form.takes_other_memory and not (expected is None or expected.has_room)
        refused = refused and not form.cleaned_data["overcommit"]
        if not (preview or refused) and (model := form.carry_out(current_user(request))):
            messages.success(request, done % {"model": model.name})
            return redirect("operations-model", model.name)
        form.refused = refused
        context |= {"estimate": expected, "refused": refused, "has_estimate": preview or refused}
    return posted_forms.render_form(request, "operations/edit.html", form, context, refused=form.refused)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_host(request: HttpRequest, pk: int) -> HttpResponse:
    with locked_if_posted(request, lambda: lock_row(Host, pk)):
        host = get_object_or_404(Host.objects.select_related("report"), pk=pk)
        form = HostForm(posted_forms.posted_data(request), instance=host)
        if form.is_valid() and (answer := take_host(request, form)):
            return answer
    overview = read_host_overview(host, read_now())
    context = {
        "host": host,
        "overview": overview,
        "models": host.models.order_by("name"),
        "evictions": read_evictions(host=host),
        "moves": read_moves(host=host),
        "now": timezone.now(),
        "zone": zone_of(current_user(request)),
        "needed": find_removal_obstacle(host),
    }
    return posted_forms.render_form(request, "operations/host.html", form, context)


def take_host(request: HttpRequest, form: HostForm) -> HttpResponse | None:
    """Save the valid form, after a page that asks if models would stop; None: it was refused."""
    host, before = form.instance, form.initial
    address, maintenance = form.cleaned_data.get("address", before["address"]), form.cleaned_data["maintenance"]
    verb = "maintenance" if maintenance and not before["maintenance"] else ""
    verb = verb or ("move" if address != before["address"] else "")
    if verb and "confirmed" not in request.POST and (hit := affected_models(host)):
        return render(request, "operations/ask_host.html", {"host": host, "form": form, "verb": verb, "hit": hit})
    if not form.carry_out(current_user(request)):
        return None
    messages.success(request, _("%(host)s is changed.") % {"host": host.name})
    return redirect("operations")


def affected_models(host: Host) -> list[tuple[ModelView, Callers]]:
    """Return the models whose engines on this host would stop, by name, with their recent callers."""
    now = read_now()
    running = Replica.objects.filter(host=host, state__in=ALIVE).exclude(model__engine__in=external_engines())
    served = list(prefetch_models(ServedModel.objects.filter(pk__in=running.values("model")).order_by("name")))
    called = count_callers_by_model([model.name for model in served], now)
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
    """Start the model without a question: it can be undone."""
    model = get_object_or_404(ServedModel, name=name)
    return run_action(
        request, name, lambda: actions.start_model(current_user(request), model), _("%(model)s is being started.")
    )


@operator_required
@posted_forms.only_posted
def calm(request: HttpRequest, name: str) -> HttpResponse:
    """Set what makes word loops rarer, without a question: the form takes it back."""
    model = get_object_or_404(ServedModel, name=name)
    done = _("%(model)s samples more calmly from now on. Its form can take that back.")
    return run_action(request, name, lambda: actions.calm_model(current_user(request), model), done)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def stop(request: HttpRequest, name: str) -> HttpResponse:
    model = get_object_or_404(ServedModel, name=name)
    if request.method == "POST":
        done = _("%(model)s takes no new requests; its engines stop when running requests have finished.")
        return run_action(request, name, lambda: actions.stop_model(current_user(request), model), done)
    return ask_confirmation(request, model, "stop")


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def restart(request: HttpRequest, name: str) -> HttpResponse:
    model = get_object_or_404(ServedModel, name=name)
    if request.method == "POST":
        seen = request.POST.get("generation", "")
        done = _("%(model)s restarts when running requests have finished.")
        return run_action(
            request,
            name,
            lambda: actions.restart_model(
                current_user(request), model, seen=int(seen) if re.fullmatch("[0-9]{1,9}", seen) else None
            ),
            done,
        )
    return ask_confirmation(request, model, "restart")


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def unregister(request: HttpRequest, name: str) -> HttpResponse:
    model = get_object_or_404(ServedModel, name=name)
    if request.method == "POST":
        return run_action(
            request,
            name,
            lambda: actions.unregister_model(current_user(request), model),
            _("%(model)s is unregistered."),
        )
    return ask_confirmation(request, model, "unregister")


def ask_confirmation(request: HttpRequest, model: ServedModel, verb: str) -> HttpResponse:
    """Return the page that asks for confirmation and shows who would be affected."""
    now = read_now()
    view = model_view(prefetch_models(ServedModel.objects.all()).get(pk=model.pk), now, None)
    context = {"row": model, "model": view, "verb": verb, "callers": count_callers(model.name, now)}
    return render(request, "operations/ask.html", context)


def run_action(request: HttpRequest, name: str, act: Callable[[], object], done: str) -> HttpResponse:
    """Act, say `done` or why it was refused, and go to the model."""
    try:
        act()
    except actions.ActionRefused as refusal:
        messages.error(request, refusal.sentence)
    else:
        messages.success(request, done % {"model": name})
    known = ServedModel.objects.filter(name=name).exists()
    return redirect("operations-model", name) if known else redirect("operations")
