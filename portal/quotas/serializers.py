"""The shapes of quotas, requests for more and what is left, in the API."""

from typing import Any

from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _
from rest_framework import serializers

from portal.accounts.api_fields import AnyTenant, Colleague
from portal.accounts.models import User
from portal.accounts.permissions import administered_tenants
from portal.keys import queries
from portal.keys.api_fields import AnyKey, AnyModel
from portal.keys.models import ApiKey
from portal.quotas.administration import MAX_AMOUNT, QuotaKind, QuotaTarget
from portal.quotas.cautions import CODES
from portal.quotas.models import Quota as QuotaRow
from portal.quotas.models import QuotaRequest
from portal.quotas.units import unit_choices
from portal.web.rest.strict_fields import CharField, KnownFields


def limitable_keys(user: User) -> QuerySet[ApiKey]:
    """Return the keys whose quotas this person may see: keys they may see, and all of tenants that they administer."""
    seen = Q(pk__in=queries.viewable_by(user).values("pk"))
    of_members = Q(tenant__in=administered_tenants(user), is_playground=False)
    keys: QuerySet[ApiKey] = ApiKey.objects.filter(seen | of_members)
    return keys


class Amount(serializers.IntegerField):
    def __init__(self, **options: Any) -> None:
        super().__init__(min_value=0, max_value=MAX_AMOUNT, **options)


class Bounded(KnownFields):
    """The owner of a quota (`key`; `tenant`; `tenant` and `user`: a member; `user`: everywhere) and what it counts."""

    tenant = AnyTenant(required=False, default=None, allow_null=True)
    user = Colleague(required=False, default=None, allow_null=True)
    key = AnyKey(limitable_keys, required=False, default=None, allow_null=True)
    unit = serializers.ChoiceField(unit_choices())
    window = serializers.ChoiceField(
        QuotaRow.Window.choices, required=False, default="", allow_blank=True, help_text="Empty for `concurrent` alone."
    )
    model = AnyModel(required=False, default=None, allow_null=True, help_text="Null: all models together.")

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        default_for, of = values.get("default_for", ""), {name for name in ("tenant", "user", "key") if values[name]}
        allowed = {"": ({"tenant"}, {"tenant", "user"}, {"user"}, {"key"}), "tenant": (set(),)}
        if of not in allowed.get(default_for, ({"tenant"},)):
            raise serializers.ValidationError(
                _("Choose one: a tenant, a user, a member of a tenant, a key or a default.")
            )
        return values


def quota_target(values: dict[str, Any]) -> QuotaTarget:
    return QuotaTarget(
        tenant=values["tenant"], user=values["user"], key=values["key"], default_for=values.get("default_for", "")
    )


def quota_kind(values: dict[str, Any]) -> QuotaKind:
    return QuotaKind(unit=values["unit"], window=values["window"], model=values["model"])


class NewQuota(Bounded):
    """A default for all of a kind, if `default_for` is set: `tenant` alone, `member` and `service` with a `tenant`."""

    default_for = serializers.ChoiceField(QuotaRow.DefaultFor.choices, required=False, default="", allow_blank=True)
    amount = Amount(help_text="0 blocks.")


class ChangedQuota(KnownFields):
    amount = Amount(help_text="0 blocks.")


class Quota(serializers.Serializer[QuotaRow]):
    id = serializers.IntegerField()
    tenant = CharField(source="tenant.slug", default=None, allow_null=True)
    user = CharField(source="user.username", default=None, allow_null=True)
    key = CharField(source="key.prefix", default=None, allow_null=True)
    default_for = serializers.ChoiceField(
        QuotaRow.DefaultFor.choices, allow_blank=True, help_text="Default for all of a kind."
    )
    model = CharField(source="model.name", default=None, allow_null=True)
    unit = serializers.ChoiceField(unit_choices())
    window = serializers.ChoiceField(QuotaRow.Window.choices, allow_blank=True)
    amount = serializers.IntegerField()


def cautions_field() -> serializers.ListField:
    return serializers.ListField(
        child=serializers.ChoiceField(CODES),
        help_text=(
            "All that pages ask about first. `blocks-all`: 0 for a whole tenant or all of a kind. `never-reached`:"
            " another quota ends it first. `leap`: a hundred times as much as before."
        ),
    )


class SavedQuota(Quota):
    """A quota that was saved just now."""

    cautions = cautions_field()


class QuotaFilter(serializers.Serializer[Any]):
    tenant = AnyTenant(required=False, help_text="Of the tenant, its members, its keys, and its defaults.")
    user = Colleague(required=False)
    key = AnyKey(limitable_keys, required=False)
    default_for = serializers.ChoiceField(QuotaRow.DefaultFor.choices, required=False)
    unit = serializers.ChoiceField(unit_choices(), required=False)


class NewRequest(Bounded):
    """For yourself: `tenant` and `user` (you). For a key that you answer for: `key`. As its admin for a `tenant`."""

    amount = Amount(help_text="More than there is now.")
    reason = CharField(max_length=500, required=False, default="", allow_blank=True)


class ChangedRequest(KnownFields):
    amount = Amount(help_text="More than there was when it was asked for.")
    reason = CharField(max_length=500, required=False, allow_blank=True)


class Request(serializers.Serializer[QuotaRequest]):
    """A request for more, and how it was decided."""

    id = serializers.IntegerField()
    tenant = CharField(source="tenant.slug")
    user = CharField(source="user.username", default=None, allow_null=True)
    key = CharField(source="key.prefix", default=None, allow_null=True)
    model = CharField(source="model.name", default=None, allow_null=True)
    unit = serializers.ChoiceField(unit_choices())
    window = serializers.ChoiceField(QuotaRow.Window.choices, allow_blank=True)
    amount = serializers.IntegerField(help_text="Requested.")
    previous_amount = serializers.IntegerField(help_text="When it was asked for.")
    current_amount = serializers.SerializerMethodField(
        help_text="What applies now. Null: there is no limit, or you have left the tenant."
    )
    reason = CharField()
    asked_by = CharField(source="asked_by.username", default=None, allow_null=True)
    asked_at = serializers.DateTimeField()
    state = serializers.ChoiceField(QuotaRequest.State.choices)
    granted = serializers.IntegerField(allow_null=True)
    decided_by = CharField(source="decided_by.username", default=None, allow_null=True)
    decided_at = serializers.DateTimeField(allow_null=True)
    note = CharField()

    def get_current_amount(self, row: QuotaRequest) -> int | None:
        """Return it from `current` of the context, see `show_requests`."""
        current: dict[int, int | None] = self.context["current"]
        return current.get(row.pk)


class GrantedRequest(Request):
    """A request that was granted just now."""

    cautions = cautions_field()


class RequestFilter(serializers.Serializer[Any]):
    tenant = AnyTenant(required=False)
    state = serializers.ChoiceField(QuotaRequest.State.choices, required=False)
    waiting = serializers.BooleanField(
        required=False, allow_null=True, default=None, help_text="True: only those that wait for your answer."
    )


class Grant(KnownFields):
    amount = Amount(required=False, allow_null=True, default=None, help_text="Left out: as much as was requested.")
    note = CharField(max_length=500, required=False, default="", allow_blank=True)


class QuotaRefusal(KnownFields):
    note = CharField(max_length=500, help_text="Why not, for who asked.")


class Allowance(serializers.Serializer[Any]):
    """A quota and what is left of it."""

    of = serializers.ChoiceField(["tenant", "user", "member", "key"])
    owner = CharField(help_text="The name of the tenant, the person or the key.")
    tenant = CharField(help_text="The name of the tenant that a member's or a key's quota belongs to.")
    model = CharField(help_text="Empty: all models together.")
    unit = serializers.ChoiceField(unit_choices())
    window = serializers.ChoiceField(QuotaRow.Window.choices, allow_blank=True)
    amount = serializers.IntegerField()
    spent = serializers.IntegerField(allow_null=True, help_text="Null where nothing adds up over time.")
    left = serializers.IntegerField()
    percent = serializers.IntegerField(help_text="0 to 100, how much is used up.")
    near = serializers.BooleanField(help_text="Four fifths or more are used up.")
    renews_at = serializers.DateTimeField(allow_null=True)
    is_default = serializers.BooleanField(help_text="A default, not a quota of its own.")


class AllowanceFilter(serializers.Serializer[Any]):
    tenant = AnyTenant(required=False, help_text="As its admin: what it has as a whole; with `user` what a member has.")
    user = Colleague(required=False)
    key = AnyKey(limitable_keys, required=False, help_text="All that bounds a call with this key.")

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if "user" in values and "tenant" not in values:
            raise serializers.ValidationError({"tenant": _("Name the tenant as well.")})
        return values
