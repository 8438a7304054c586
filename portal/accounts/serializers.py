"""The shapes of people and tenants in the API."""

from typing import Any, ClassVar

from rest_framework import serializers

from portal.accounts.models import Membership, User


class Place(serializers.Serializer[Membership]):
    """Where a person belongs."""

    tenant = serializers.CharField(source="tenant.slug")
    name = serializers.CharField(source="tenant.name")
    role = serializers.ChoiceField(Membership.Role.choices)
    is_active = serializers.BooleanField(source="tenant.is_active", help_text="False: the tenant is switched off.")


class CallingKey(serializers.Serializer[Any]):
    prefix = serializers.CharField()
    name = serializers.CharField()
    scopes = serializers.ListField(child=serializers.CharField())
    expires_at = serializers.DateTimeField(allow_null=True)


class Me(serializers.Serializer[User]):
    username = serializers.CharField()
    name = serializers.CharField(source="get_full_name")
    email = serializers.CharField()
    is_operator = serializers.BooleanField(source="is_staff")
    tenants = Place(source="places", many=True)
    key = CallingKey(allow_null=True, help_text="The management key of this call; null in a session.")


class Settings(serializers.ModelSerializer[User]):
    class Meta:
        model = User
        fields: ClassVar = ["language", "wants_mail"]
