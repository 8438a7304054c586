"""The management API for operators: hosts, models and replicas, and the functions of `actions`.

Values of modelregistry.overview are sent as they are, the same as on sockets; the serializers describe them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Prefetch, Q, QuerySet
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from modelregistry import fit, overview, validation
from modelregistry.database_clock import read_now
from modelregistry.engines.base import Spec
from modelregistry.engines.presets import PRESETS, Preset
from modelregistry.evictions import read_evictions
from modelregistry.failure_advice import advise, words
from modelregistry.files import model_files
from modelregistry.models import EngineTrial, FileReport, Host, LogTail, Replica, ServedModel
from modelregistry.moves import read_moves
from portal.accounts.models import DirectoryState
from portal.accounts.permissions import current_user
from portal.canary import reports
from portal.keys.models import ModelAccess
from portal.operations import actions, directory, history, live, loops
from portal.operations import serializers as shapes
from portal.operations.figure_history import DEVICE_FIGURES, MODEL_FIGURES
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.problems import Conflict
from portal.web.rest.validation import to_plain, validated

SUBJECT = "operations"


class OverviewView(APIView):
    subject = SUBJECT

    @extend_schema(
        summary=gettext_lazy("Hosts and models with their live state"),
        operation_id="overview",
        responses={200: shapes.Overview},
    )
    def get(self, request: Request) -> Response:
        """Return all hosts and models with their live state, as `/ws/operations/` sends them."""
        now = read_now()
        return Response(to_plain(overview.read_overview(now, live.read_first_tokens(now))))


class Hosts(GenericViewSet[Host]):
    subject = SUBJECT
    queryset = Host.objects.select_related("report")
    serializer_class = shapes.HostNow
    pagination_class = ListPagination
    lookup_value_converter = "int"

    @extend_schema(
        summary=gettext_lazy("Hosts"), parameters=[shapes.HostFilter], responses={200: shapes.HostNow(many=True)}
    )
    def list(self, request: Request) -> Response:
        """List hosts with the memory of their devices."""
        wanted = validated(shapes.HostFilter, request.query_params)["supervised"]
        found = [host for host in self._host_values(self.get_queryset()) if wanted in (None, host.supervised)]
        return self.get_paginated_response(to_plain(self.paginate_queryset(found)))

    @extend_schema(summary=gettext_lazy("One host"), responses={200: shapes.HostNow})
    def retrieve(self, request: Request, pk: int) -> Response:
        (host,) = self._host_values([self.get_object()])
        return Response(to_plain(host))

    @extend_schema(summary=gettext_lazy("Change a host"), request=shapes.HostChange, responses={200: shapes.HostNow})
    def partial_update(self, request: Request, pk: int) -> Response:
        """Change the address or the maintenance of a host; its supervisor follows within seconds."""
        host = self.get_object()
        actions.change_host(current_user(request), host, **validated(shapes.HostChange, request.data))
        return self.retrieve(request, pk)

    @extend_schema(summary=gettext_lazy("Remove a host"), responses={204: None})
    def destroy(self, request: Request, pk: int) -> Response:
        """Remove a host that is gone. 409: it is alive, or models belong to it."""
        actions.remove_host(current_user(request), self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        summary=gettext_lazy("Models that gave their place to others on a host"),
        responses={200: shapes.PastEviction(many=True)},
        filters=False,
    )
    @action(detail=True, pagination_class=None)
    def evictions(self, request: Request, pk: int) -> Response:
        """Return the last evictions on the host, newest first."""
        return Response(to_plain(read_evictions(host=self.get_object())))

    @extend_schema(
        summary=gettext_lazy("Replicas that were moved from or to a host"),
        responses={200: shapes.PastMove(many=True)},
        filters=False,
    )
    @action(detail=True, pagination_class=None)
    def moves(self, request: Request, pk: int) -> Response:
        """Return the last moves, newest first."""
        return Response([shapes.PastMove(move).data for move in read_moves(host=self.get_object())])

    @extend_schema(
        summary=gettext_lazy("What a host’s devices did"),
        parameters=[shapes.HistoryFilter],
        responses={200: shapes.PastOfDevice(many=True)},
        filters=False,
    )
    @action(detail=True, pagination_class=None)
    def history(self, request: Request, pk: int) -> Response:
        """Return what was measured of its devices, oldest first. While it was silent nothing was."""
        period = validated(shapes.HistoryFilter, request.query_params)["period"]
        rows = history.read_device_rows(self.get_object().name, read_now(), history.PERIODS[period])
        return Response([{"device": row.subject, **history.describe_row(row, DEVICE_FIGURES)} for row in rows])

    def _host_values(self, hosts: Iterable[Host]) -> Sequence[overview.HostNow]:
        now, rows = read_now(), list(Replica.objects.all())
        return [overview.host_now(host, rows, now) for host in hosts]


class Models(GenericViewSet[ServedModel]):
    subject = SUBJECT
    queryset = ServedModel.objects.select_related("host", "shortage", "gap").prefetch_related(
        "aliases",
        Prefetch("replica_set", overview.with_placements(Replica.objects.select_related("host", "model"))),
        Prefetch("trials", EngineTrial.objects.select_related("host")),
    )
    serializer_class = shapes.Model
    pagination_class = ListPagination
    lookup_value_converter = "int"

    @extend_schema(
        summary=gettext_lazy("Models as they are to be served"),
        parameters=[shapes.ModelFilter],
        responses={200: shapes.Model(many=True)},
    )
    def list(self, request: Request) -> Response:
        """List models as they are to be served, each with its live state."""
        wanted = validated(shapes.ModelFilter, request.query_params)
        rows = self._filter_rows(wanted)
        shown = [one for one in self._show_values(rows) if wanted.get("state") in (None, one["now"]["state"])]
        return self.get_paginated_response(self.paginate_queryset(shown))

    @extend_schema(summary=gettext_lazy("One model"), responses={200: shapes.Model})
    def retrieve(self, request: Request, pk: int) -> Response:
        return self._respond(self.get_object())

    @extend_schema(summary=gettext_lazy("Register a model"), responses={201: shapes.Model})
    def create(self, request: Request) -> Response:
        """Register a model; its host starts it at once unless `enabled` is false."""
        model = actions.register_model(current_user(request), **validated(shapes.Model, request.data))
        return self._respond(model, status.HTTP_201_CREATED)

    @extend_schema(summary=gettext_lazy("Change a model"), responses={200: shapes.Model})
    def partial_update(self, request: Request, pk: int) -> Response:
        """Change the fields that are sent. Engines restart if they are started with a changed value."""
        model = self.get_object()
        filled = shapes.Model(model, data=request.data, partial=True)
        filled.is_valid(raise_exception=True)
        values = dict(filled.validated_data)
        aliases, tenants = values.pop("aliases", None), values.pop("tenants", None)
        actions.load_parser_options(model, values)
        with transaction.atomic():
            if values:
                actions.change_model(current_user(request), model, **values)
            if aliases is not None:
                actions.set_aliases(current_user(request), model, aliases)
            if tenants is not None:
                actions.set_visibility(current_user(request), model, tenants)
        return self._respond(model)

    @extend_schema(summary=gettext_lazy("Unregister a model"), responses={204: None})
    def destroy(self, request: Request, pk: int) -> Response:
        """Remove a model from the catalogue; its engines are drained and stopped."""
        actions.unregister_model(current_user(request), self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        summary=gettext_lazy("What a model did"),
        parameters=[shapes.HistoryFilter],
        responses={200: shapes.PastOfModel(many=True)},
        filters=False,
    )
    @action(detail=True, pagination_class=None)
    def history(self, request: Request, pk: int) -> Response:
        """Return what was measured of a model, oldest first. Its times to the first token are among its usage."""
        period = validated(shapes.HistoryFilter, request.query_params)["period"]
        rows = history.read_model_rows(self.get_object().name, read_now(), history.PERIODS[period])
        return Response([history.describe_row(row, MODEL_FIGURES) for row in rows])

    @extend_schema(summary=gettext_lazy("Start a model"), request=None, responses={200: shapes.Model})
    @action(detail=True, methods=["post"])
    def start(self, request: Request, pk: int) -> Response:
        """Start a model; replicas that failed are tried again."""
        return self._respond(actions.start_model(current_user(request), self.get_object()))

    @extend_schema(summary=gettext_lazy("Stop a model"), request=None, responses={200: shapes.Model})
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: int) -> Response:
        """Stop a model: its engines finish running requests and stop."""
        return self._respond(actions.stop_model(current_user(request), self.get_object()))

    @extend_schema(summary=gettext_lazy("Restart a model"), request=shapes.Restart, responses={200: shapes.Model})
    @action(detail=True, methods=["post"])
    def restart(self, request: Request, pk: int) -> Response:
        """Restart a model's engines once they have finished running requests."""
        model = self.get_object()
        return self._respond(
            actions.restart_model(
                current_user(request), model, seen=validated(shapes.Restart, request.data).get("seen")
            )
        )

    @extend_schema(
        summary=gettext_lazy("Set the other names of a model"), request=shapes.Aliases, responses={200: shapes.Model}
    )
    @action(detail=True, methods=["put"])
    def aliases(self, request: Request, pk: int) -> Response:
        """Set all other names of a model."""
        model = self.get_object()
        actions.set_aliases(current_user(request), model, validated(shapes.Aliases, request.data)["aliases"])
        return self._respond(model)

    @extend_schema(
        summary=gettext_lazy("Set the tenants that may use a model"),
        request=shapes.Visibility,
        responses={200: shapes.Model},
    )
    @action(detail=True, methods=["put"])
    def visibility(self, request: Request, pk: int) -> Response:
        """Set the tenants that may use a model."""
        model = self.get_object()
        actions.set_visibility(current_user(request), model, validated(shapes.Visibility, request.data)["tenants"])
        return self._respond(model)

    @extend_schema(summary=gettext_lazy("Facts from a model's files"), responses={200: shapes.Reading})
    @action(detail=True)
    def facts(self, request: Request, pk: int) -> Response:
        found = FileReport.objects.filter(model=self.get_object()).first()
        known = {"facts": found.facts, "fault": found.fault, "at": found.at} if found else None
        return Response(to_plain(known or {"facts": None, "fault": "", "at": None}))

    @extend_schema(
        summary=gettext_lazy("When a model gave its place to another, or got another's"),
        responses={200: shapes.PastEviction(many=True)},
        filters=False,
    )
    @action(detail=True, pagination_class=None)
    def evictions(self, request: Request, pk: int) -> Response:
        """Return the last evictions of the model and for it, newest first."""
        return Response(to_plain(read_evictions(model=self.get_object())))

    @extend_schema(summary=gettext_lazy("How often a model falls into word loops"), responses={200: shapes.Loops})
    @action(detail=True)
    def loops(self, request: Request, pk: int) -> Response:
        """Return how often the model's answers fell into word loops in the last 24 hours and the 28 days before."""
        found = loops.read_loops(self.get_object(), timezone.now())
        return Response(shapes.Loops(loops.describe_loops(found)).data)

    @extend_schema(summary=gettext_lazy("What a model answers to the fixed prompts"), responses={200: shapes.Canary})
    @action(detail=True)
    def canary(self, request: Request, pk: int) -> Response:
        """Return the last runs of the canary."""
        return Response(shapes.Canary(reports.read_canary(self.get_object())).data)

    @extend_schema(
        summary=gettext_lazy("Put the fixed prompts to a model now"), request=None, responses={200: shapes.Canary}
    )
    @canary.mapping.post
    def request_canary(self, request: Request, pk: int) -> Response:
        """Have a chat model asked within minutes. Does nothing for other models."""
        model = self.get_object()
        reports.request_run(current_user(request), model)
        return Response(shapes.Canary(reports.read_canary(model)).data)

    @extend_schema(
        summary=gettext_lazy("Predict a model's memory and where it fits"),
        request=shapes.Plan,
        responses={200: shapes.PredictionResult},
    )
    @action(detail=False, methods=["post"])
    def predict(self, request: Request) -> Response:
        """Predict how much memory a model takes and on which hosts it fits, without registering it.

        Its files are read on this machine.
        """
        return Response(to_plain(predict_placement(validated(shapes.Plan, request.data))))

    def _filter_rows(self, wanted: dict[str, Any]) -> QuerySet[ServedModel]:
        rows = self.get_queryset()
        if name := wanted.get("name"):
            rows = rows.filter(Q(name=name) | Q(aliases__name=name)).distinct()
        if host := wanted.get("host"):
            rows = rows.filter(Q(host__name=host) | Q(replica_set__host__name=host)).distinct()
        if task := wanted.get("task"):
            rows = rows.filter(task=task)
        return rows

    def _respond(self, model: ServedModel, code: int = status.HTTP_200_OK) -> Response:
        """Respond with the model as it is now."""
        row = get_object_or_404(self.get_queryset(), pk=model.pk)
        return Response(self._show_values([row])[0], code)

    def _show_values(self, rows: Iterable[ServedModel]) -> Sequence[dict[str, Any]]:
        now = read_now()
        first_tokens = live.read_first_tokens(now)
        tenants: dict[int, Any] = {row.pk: [] for row in rows}
        for access in ModelAccess.objects.filter(model__in=tenants).select_related("tenant").order_by("tenant__slug"):
            tenants[access.model_id].append(access.tenant)
        for row in rows:
            row.tenants = tenants[row.pk]  # type: ignore[attr-defined]
            row.now = to_plain(  # type: ignore[attr-defined]
                overview.model_now(row, now, first_tokens.get(row.name))
            )
        return [dict(shapes.Model(row).data) for row in rows]


def predict_placement(plan: dict[str, Any]) -> dict[str, Any]:
    """Predict from the files as this machine has them. Raises ValidationError if they cannot be used."""
    host = plan.pop("host")
    problems = validation.find_problems(
        validation.Registration(**plan),
        look_at_path=True,
        look_at_argument_files=host is None or host.name == settings.HOST_NAME,
    )
    if problems:
        raise ValidationError({field: error.messages for field, error in problems.items()})
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plan.items()}
    spec = Spec(name="", **values)
    facts = model_files.read_model(spec.engine, spec.path, spec.allowed_risks)
    found = fit.estimate_on(fit.hosts().filter(pk=host.pk) if host else fit.hosts(), spec, facts)
    return {
        "facts": facts,
        "prediction": found.prediction,
        "hosts": found.hosts,
        "unplanned": list(found.unplanned),
    }


class PresetsView(APIView):
    subject = SUBJECT

    @extend_schema(
        summary=gettext_lazy("Presets of registrations"),
        operation_id="presets",
        responses={200: shapes.Preset(many=True)},
    )
    def get(self, request: Request) -> Response:
        """Return registrations of the models that this system was first built for."""
        return Response([preset_values(one) for one in PRESETS.values()])


def preset_values(one: Preset) -> dict[str, Any]:
    """Return the values of a preset, its notes in the reader's language."""
    notes = {name: _(getattr(one, name)) for name in ("place", "memory", "usage")}
    return {"key": one.key, "source": one.source, **one.fields(), **notes}


class Replicas(GenericViewSet[Replica]):
    subject = SUBJECT
    queryset = overview.with_placements(Replica.objects.select_related("host", "model"))
    serializer_class = shapes.ReplicaDetail
    pagination_class = ListPagination
    lookup_value_converter = "int"

    @extend_schema(
        summary=gettext_lazy("Replicas"),
        parameters=[shapes.ReplicaFilter],
        responses={200: shapes.ReplicaDetail(many=True)},
    )
    def list(self, request: Request) -> Response:
        """List engines that run or should run."""
        wanted = validated(shapes.ReplicaFilter, request.query_params)
        names = {"model": "model__name", "host": "host__name", "state": "state"}
        rows = self.get_queryset().filter(**{names[name]: value for name, value in wanted.items()})
        page = self.paginate_queryset(rows) or []
        return self.get_paginated_response([self._show_values(row) for row in page])

    @extend_schema(summary=gettext_lazy("One replica"), responses={200: shapes.ReplicaDetail})
    def retrieve(self, request: Request, pk: int) -> Response:
        return Response(self._show_values(self.get_object()))

    @extend_schema(summary=gettext_lazy("The end of a replica's log"), responses={200: shapes.LogTail})
    @action(detail=True)
    def log(self, request: Request, pk: int) -> Response:
        """Return the end of a replica's log. Additions are sent on the socket `/ws/operations/replicas/<id>/log/`."""
        replica = self.get_object()
        live.request_log(replica.pk, timezone.now())
        tail = LogTail.objects.filter(replica=replica).first()
        return Response(to_plain({"text": tail.text if tail else "", "at": tail.at if tail else None}))

    def _show_values(self, row: Replica) -> dict[str, Any]:
        shown: dict[str, Any] = to_plain(overview.replica_now(row, read_now()))
        failed = row.state in (Replica.State.FAILED, Replica.State.BACKOFF)
        return {**shown, "advice": (words if failed else advise)(row.cause, shown["booked_by_others"])}


class DirectoryView(APIView):
    subject = SUBJECT

    @extend_schema(
        operation_id="directory", summary=gettext_lazy("The company directory"), responses={200: shapes.Directory}
    )
    def get(self, request: Request) -> Response:
        return Response(directory_values())


class SynchroniseDirectoryView(APIView):
    subject = SUBJECT

    @extend_schema(
        operation_id="directory_sync",
        summary=gettext_lazy("Synchronise the company directory now"),
        request=shapes.SyncRequest,
        responses={200: shapes.Directory},
    )
    def post(self, request: Request) -> Response:
        """Synchronise now instead of within the hour; answers when it is done. 409: nothing was changed, and why."""
        force = validated(shapes.SyncRequest, request.data)["force"]
        if settings.DIRECTORY is None:
            raise Conflict(_("No company directory is set up."))
        state = directory.synchronise_now(current_user(request), settings.DIRECTORY, force=force)
        if state.problem:
            raise Conflict(f"{state.get_problem_display()}: {state.detail}")
        return Response(directory_values())


def directory_values() -> dict[str, Any]:
    seen = directory.read_status()
    state = seen.pop("state") or DirectoryState()
    names = ("tried_at", "succeeded_at", "problem", "detail")
    seen |= {"configured": bool(seen["configured"]), "outcome": state.outcome or None}
    return dict(shapes.Directory({**seen, **{name: getattr(state, name) for name in names}}).data)
