"""The weights of tenants, classes and service keys in the management API."""

from typing import Any

from django.core.exceptions import BadRequest
from django.core.exceptions import ValidationError as WrongValue
from django.utils.translation import gettext_lazy
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from portal.accounts.permissions import current_user
from portal.operations.weights import change_weight, describe, read_weights
from portal.web.rest.strict_fields import CharField, ChoiceField, FloatField, KnownFields
from portal.web.rest.validation import validated

PEOPLE = ["apart", "together"]


class Weight(serializers.Serializer[Any]):
    of = CharField(help_text="`tenant:SLUG`, `class:interactive`, `class:batch` or `key:PREFIX`.")
    name = CharField()
    weight = serializers.FloatField(allow_null=True, help_text="Null: of a service key, as its class.")
    counts_as = serializers.FloatField(
        help_text="People of weight 1 as which it counts in the queue; with `apart`, each person behind it does."
    )
    people = serializers.ChoiceField(
        PEOPLE, allow_null=True, help_text="Of a service key: whether the people behind it take turns of their own."
    )


class WeightList(serializers.Serializer[Any]):
    weights = Weight(many=True)


class WeightChange(KnownFields):
    of = CharField(max_length=120)
    weight = FloatField(required=False, allow_null=True, help_text="Null: of a service key, as its class.")
    people = ChoiceField(PEOPLE, required=False, help_text="Of a service key.")


class WeightsView(APIView):
    subject = "operations"

    @extend_schema(
        summary=gettext_lazy("Weights of tenants, classes and service keys"),
        operation_id="weights",
        responses={200: WeightList},
    )
    def get(self, request: Request) -> Response:
        """Return how much callers are served beside others where calls wait."""
        found = read_weights()
        return Response({"weights": describe([*found.tenants, *found.classes, *found.keys])})

    @extend_schema(
        summary=gettext_lazy("Set a weight"),
        operation_id="weights_change",
        request=WeightChange,
        responses={200: WeightList},
    )
    def patch(self, request: Request) -> Response:
        """Set the weight of one of them, or whether the people behind a service key take turns of their own."""
        values = validated(WeightChange, request.data)
        apart = {"apart": True, "together": False}.get(values.get("people", ""))
        try:
            change_weight(current_user(request), values["of"], weight=values.get("weight", ...), apart=apart)
        except WrongValue as error:
            field = "people" if getattr(error, "code", "") == "no-service" else "weight"  # of a model it has none
            raise ValidationError({field: error.messages}) from error
        except BadRequest as error:
            raise ValidationError({"of": str(error)}) from error
        return self.get(request)
