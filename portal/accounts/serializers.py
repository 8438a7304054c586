"""People and tenants as the API shows and takes them."""

from typing import Any, ClassVar

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from portal.accounts.models import Membership, Tenant, User
from portal.web.rest.strict_fields import CharField, KnownFields, ModelSerializer


class OwnMembership(serializers.Serializer[Membership]):
    """One membership of the person."""

    tenant = CharField(source="tenant.slug")
    name = CharField(source="tenant.name")
    role = serializers.ChoiceField(Membership.Role.choices)
    is_active = serializers.BooleanField(source="tenant.is_active", help_text="False: the tenant is switched off.")


class CallingKey(serializers.Serializer[Any]):
    prefix = CharField()
    name = CharField()
    scopes = serializers.ListField(child=CharField())
    expires_at = serializers.DateTimeField(allow_null=True)


class Me(serializers.Serializer[User]):
    username = CharField()
    name = CharField(source="get_full_name")
    email = CharField()
    is_operator = serializers.BooleanField(source="is_staff")
    tenants = OwnMembership(source="places", many=True)
    key = CallingKey(allow_null=True, help_text="The management key of this request; null in a session.")


class Settings(KnownFields, ModelSerializer[User]):
    class Meta:
        model = User
        fields: ClassVar = ["language", "wants_mail", "wants_tips"]


# --- tenants


class TenantNow(ModelSerializer[Tenant]):
    class Meta:
        model = Tenant
        fields: ClassVar = ["slug", "name", "time_zone", "key_days", "weight", "is_active", "created_at"]


class NewTenant(KnownFields, ModelSerializer[Tenant]):
    class Meta:
        model = Tenant
        fields: ClassVar = ["slug", "name", "time_zone", "key_days", "weight"]


class ChangedTenant(KnownFields, ModelSerializer[Tenant]):
    """Without the short name, which never changes: addresses, commands and directory groups contain it."""

    class Meta:
        model = Tenant
        fields: ClassVar = ["name", "time_zone", "key_days", "weight", "is_active"]


class TenantFilter(serializers.Serializer[Any]):
    name = CharField(required=False, help_text="Part of its name or short name.")
    is_active = serializers.BooleanField(required=False, allow_null=True, default=None)
    administered = serializers.BooleanField(
        required=False, allow_null=True, default=None, help_text="True: only those that you administer."
    )


class Member(serializers.Serializer[Membership]):
    user = CharField(source="user.username")
    name = CharField(source="user.get_full_name")
    email = CharField(source="user.email")
    is_active = serializers.BooleanField(source="user.is_active")
    role = serializers.ChoiceField(Membership.Role.choices)
    source = serializers.ChoiceField(  # type: ignore[assignment]
        Membership.Source.choices, help_text="`directory`: comes from the company directory and is changed there."
    )
    is_champion = serializers.BooleanField(help_text="May publish use cases for the tenant.")
    since = serializers.DateTimeField()


class MemberFilter(serializers.Serializer[Any]):
    name = CharField(required=False, help_text="Words that occur in the name, user name or mail address.")
    role = serializers.ChoiceField(Membership.Role.choices, required=False)
    source = serializers.ChoiceField(Membership.Source.choices, required=False)  # type: ignore[assignment]


class NewMember(KnownFields):
    user = CharField(max_length=150, help_text="User name of a person who has an account here.")
    role = serializers.ChoiceField(Membership.Role.choices, required=False, default=Membership.Role.MEMBER)


class ChangedMember(KnownFields):
    role = serializers.ChoiceField(Membership.Role.choices, required=False)
    is_champion = serializers.BooleanField(required=False, allow_null=True, default=None)

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse a change of nothing: a misspelt name would seem to succeed."""
        if "role" not in values and values["is_champion"] is None:
            raise serializers.ValidationError({"role": [_("Give a role, or whether the person is a champion.")]})
        return values
