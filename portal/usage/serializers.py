"""The shapes of usage in the API."""

from typing import Any

from django.utils.translation import gettext as _
from rest_framework import serializers

from portal.usage import periods, scopes
from portal.web.rest.strict_fields import CharField

GROUPS = ["model", "tenant", "user", "key", "end_user"]


class UsageFilter(serializers.Serializer[Any]):
    of = CharField(
        required=False,
        default=scopes.ME,
        help_text="`me`; `tenant:<short name>` of one that you administer; for operators `all`.",
    )
    period = CharField(
        required=False,
        default="this-month",
        help_text=f"{', '.join(f'`{name}`' for name in periods.NAMES)}; a day `2026-11-22`, a month `2026-11`, or the"
        " fiscal year `FY2026`, which begins in April 2026. Days of your tenant's calendar.",
    )
    model = CharField(required=False, default="", max_length=100)
    user = CharField(required=False, default="", max_length=150, help_text="User name, or `service`.")
    key = CharField(required=False, default="", max_length=12, help_text="Prefix.")
    end_user = CharField(required=False, default="", max_length=64)


class GroupFilter(UsageFilter):
    by = serializers.ChoiceField(
        GROUPS, required=False, default="model", help_text="Not all of `tenant` and `user` go with every `of`."
    )


class SpanFields(serializers.Serializer[Any]):
    of = CharField()
    first = serializers.DateField(help_text="Day.")
    last = serializers.DateField(help_text="Day, included.")


class Numbers(serializers.Serializer[Any]):
    requests = serializers.IntegerField()
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    total_tokens = serializers.IntegerField()
    estimated = serializers.IntegerField(help_text="Requests whose tokens the gateway had to count itself.")
    looped = serializers.IntegerField(help_text="Answers that fell into a word loop.")
    looped_tokens = serializers.IntegerField(help_text="Tokens of these answers that repeat others.")
    saved_tokens = serializers.IntegerField(help_text="Tokens that loops could still have taken, had they not ended.")


class Reason(serializers.Serializer[Any]):
    """Why requests got no complete answer."""

    name = CharField(help_text="A code of the gateway, or how a request ended.")
    title = CharField()
    advice = CharField()
    requests = serializers.IntegerField()


class FirstTokens(serializers.Serializer[Any]):
    """Seconds until the first token."""

    half = serializers.FloatField(help_text="Half of the answers had begun by then.")
    most = serializers.FloatField(help_text="95 in 100 had begun by then.")


class Totals(SpanFields, Numbers):
    people = serializers.IntegerField(allow_null=True, help_text="Who used anything; null: one person's usage.")
    tokens_per_second = serializers.FloatField(allow_null=True, help_text="Of one answer, from its first token on.")
    first_tokens = FirstTokens(allow_null=True, help_text="Null: not known.")
    before = serializers.IntegerField(help_text="Tokens in the period that it is compared with.")
    change = serializers.IntegerField(allow_null=True, help_text="Per cent; null: nothing to compare with.")
    without_answer = Reason(many=True)


class Slot(Numbers):
    slot = CharField(help_text="The moment or day at which it begins.")
    model = CharField()


class UsageSeries(SpanFields):
    unit = serializers.ChoiceField(["hour", "day", "month", "year"])
    rows = Slot(many=True, help_text="Only where there was any usage.")


class Group(Numbers):
    id = CharField(help_text="What the parameter of the same name takes; empty: deleted.")
    name = CharField()
    tokens_per_second = serializers.FloatField(allow_null=True, source="speed")
    change = serializers.IntegerField(allow_null=True, help_text="Tokens, in per cent against the period before.")


class ScopeChoice(serializers.Serializer[Any]):
    of = CharField()
    name = CharField()


def no_such_period() -> serializers.ValidationError:
    return serializers.ValidationError({"period": _("There is no such period, or it has not begun.")})


def no_such_group() -> serializers.ValidationError:
    return serializers.ValidationError({"by": _("This usage cannot be grouped by that.")})
