"""The management API's view of the queue."""

from typing import Any

from django.utils import timezone
from django.utils.translation import gettext_lazy
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from portal.operations.queue import QueueReader
from portal.web.rest.strict_fields import CharField
from portal.web.rest.validation import to_plain


class QueuedCall(serializers.Serializer[Any]):
    """A call that waits: who for what, never what it asks."""

    model = CharField()
    call_class = CharField(help_text="`interactive`, `batch` or `canary`.")
    waited = serializers.FloatField(help_text="Seconds.")
    place = serializers.IntegerField(help_text="In the queue of its worker and model; 1: it is next.")
    expected = serializers.FloatField(allow_null=True, help_text="Seconds that it is expected to wait on.")
    tenant = CharField()
    tenant_name = CharField()
    user = CharField(allow_null=True, help_text="Null: the key is of a service.")
    name = CharField(help_text="Of the person or the service.")
    key = CharField(help_text="Its prefix.")
    end_user = CharField(help_text="The person behind a service key, if it names them.")
    worker = CharField()


class QueuedReplica(serializers.Serializer[Any]):
    replica = serializers.IntegerField()
    host = CharField()
    running = serializers.IntegerField(help_text="Calls that it works on.")
    room = serializers.FloatField(allow_null=True, help_text="Calls that it may work on. Null: without a bound.")


class Fairness(serializers.Serializer[Any]):
    call_class = CharField()
    index = serializers.FloatField(
        help_text="Jain's index of the tokens of callers who always had calls waiting, against their fair shares."
    )
    callers = serializers.IntegerField()
    minutes = serializers.IntegerField(help_text="Of the last hour, in which there were at least two such callers.")


class QueuedModel(serializers.Serializer[Any]):
    model = CharField()
    waiting = serializers.DictField(child=serializers.IntegerField(), help_text="Calls, by class.")
    longest = serializers.FloatField(help_text="Seconds that a call has waited at most.")
    loading = serializers.FloatField(allow_null=True, help_text="Seconds since it is being loaded. Null: it is not.")
    usual_loading = serializers.FloatField(allow_null=True, help_text="Seconds that it took last.")
    replicas = QueuedReplica(many=True)
    fairness = Fairness(many=True)


class QueueWorker(serializers.Serializer[Any]):
    worker = CharField()
    age = serializers.FloatField(help_text="Seconds since it reported.")
    waiting = serializers.IntegerField()


class QueueNow(serializers.Serializer[Any]):
    waiting = serializers.IntegerField(help_text="All calls that wait, also those that are not listed.")
    calls = QueuedCall(many=True)
    models = QueuedModel(many=True)
    workers = QueueWorker(many=True)


class QueueView(APIView):
    subject = "operations"

    @extend_schema(
        summary=gettext_lazy("Who waits, how long and for what"), operation_id="queue", responses={200: QueueNow}
    )
    def get(self, request: Request) -> Response:
        """Return the calls that wait, the longest waiting first, as `/ws/operations/queue/` sends them."""
        return Response(to_plain(QueueReader()(timezone.now())))
