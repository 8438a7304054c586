"""The status of models as the API shows it."""

from typing import Any

from rest_framework import serializers

from portal.keys.model_access import Liveness


class StatusDay(serializers.Serializer[Any]):
    day = serializers.DateField()
    share = serializers.FloatField(
        allow_null=True, help_text="Of the time, 0 to 1. Null: the model was not offered or not watched."
    )


class StatusOfModel(serializers.Serializer[Any]):
    name = serializers.CharField()
    state = serializers.ChoiceField(Liveness.choices, source="offer.state")
    share = serializers.FloatField(allow_null=True, help_text="Of all days.")
    days = StatusDay(many=True, help_text="The oldest first, in your time zone.")


class Incident(serializers.Serializer[Any]):
    """A time in which a model did not answer."""

    model = serializers.CharField()
    reason = serializers.CharField(help_text="In the language that the request accepts.")
    began_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True, help_text="Null: it still does not answer.")
    seconds = serializers.IntegerField()


class Status(serializers.Serializer[Any]):
    models = StatusOfModel(many=True)
    incidents = Incident(many=True, help_text="Of these models, the latest first.")
