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
        help_text=f"{', '.join(f'`{name}`' for name in periods.NAMES)}; a day `2026-11-22`, a month `2026-11`, any"
        " days `2026-11-03..2026-11-20`, or the"
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


class RequestFilter(serializers.Serializer[Any]):
    of = CharField(required=False, default=scopes.ME, help_text="As that of `usage`.")


class RequestTimeline(serializers.Serializer[Any]):
    """One request, in milliseconds. Null: not known, or recorded by an older gateway."""

    request_id = CharField()
    arrived = serializers.DateTimeField()
    model = CharField(help_text="Empty: none that the key may use.")
    key = CharField(help_text="Prefix; empty: deleted.")
    endpoint = CharField()
    status = CharField(help_text="How it ended; `rejected`: it reached no engine.")
    stopped_by = CharField(help_text="What ended it, as `stop`, `length`, `client`, `engine_died`; empty: not known.")
    code = CharField(help_text="Of a rejected one: the code of its error.")
    queued_ms = serializers.IntegerField(allow_null=True, help_text="Until it was its turn.")
    loading_ms = serializers.IntegerField(allow_null=True, help_text="Until its model was loaded.")
    prefill_ms = serializers.IntegerField(
        allow_null=True, help_text="From when its engine had it to the first token; null of an answer in one piece."
    )
    first_token_ms = serializers.IntegerField(allow_null=True, help_text="From its turn to the first token.")
    generating_ms = serializers.IntegerField(allow_null=True, help_text="From the first token to the end.")
    duration_ms = serializers.IntegerField(help_text="From its turn to the end.")
    retries = serializers.IntegerField(allow_null=True, help_text="How often it was sent to another replica.")
    replica = serializers.IntegerField(allow_null=True)
    engine = CharField(help_text="What runs it, and its version; empty: not known, or external.")
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    retry_after = serializers.IntegerField(allow_null=True, help_text="Seconds, of a rejected one.")


class RequestCause(serializers.Serializer[Any]):
    """One cause of what became of a request."""

    code = CharField(help_text="As `waited_behind_others`, `model_was_asleep`, `quota_used_up`.")
    effect = serializers.ChoiceField(["slow", "ended", "refused", "none"])
    figures = serializers.DictField(help_text="Numbers and names by which the sentence was made; `ms`: what it took.")
    sentence = CharField(help_text="In your language.")
    advice = CharField()


class ExplainedRequest(RequestTimeline):
    causes = RequestCause(many=True, help_text="What ended it first, then what took the most of its time.")


class ScopeChoice(serializers.Serializer[Any]):
    of = CharField()
    name = CharField()


def no_such_period() -> serializers.ValidationError:
    return serializers.ValidationError({"period": _("There is no such period, or it has not begun.")})


def no_such_group() -> serializers.ValidationError:
    return serializers.ValidationError({"by": _("This usage cannot be grouped by that.")})
