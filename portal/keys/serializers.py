"""Serializers of API keys, management keys and the catalogue of models."""

from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _
from rest_framework import serializers

from modelregistry.models import ServedModel
from modelregistry.one_line import check_one_line
from portal.accounts.api_fields import AnyTenant, Colleague
from portal.accounts.models import Tenant
from portal.keys import networks, queries
from portal.keys.api_fields import AnyModel
from portal.keys.model_access import AvailableModel, Liveness, open_to
from portal.keys.models import ApiKey, check_expiry
from portal.web.rest import scopes
from portal.web.rest.strict_fields import CharField, DateTimeField, KnownFields

LONGEST_OVERLAP = 90 * 24  # hours


class Key(serializers.Serializer[ApiKey]):
    """An API key. Its text is not stored: it is in the response to the request that created the key, only there."""

    prefix = CharField(help_text="The first 12 characters of its text, which identify it.")
    name = CharField()
    purpose = CharField()
    tenant = CharField(source="tenant.slug")
    user = CharField(
        source="user.username", default=None, allow_null=True, help_text="Its person. Null: a service key."
    )
    service = CharField(help_text="What uses a service key; empty for a personal key.")
    responsible = CharField(
        source="responsible.username",
        default=None,
        allow_null=True,
        help_text="The person responsible for a service key.",
    )
    key_class = serializers.ChoiceField(ApiKey.Class.choices)
    networks = serializers.ListField(child=CharField(), help_text="Empty: from everywhere.")
    takes_user_headers = serializers.BooleanField()
    has_user_secret = serializers.BooleanField(
        source="end_user_nonce", help_text="Whether its calls name people only by tokens signed with its secret."
    )
    separates_users = serializers.BooleanField(
        help_text="Whether each person behind it is a caller of their own where calls wait. Operators decide."
    )
    loop_guard = serializers.BooleanField(help_text="Whether its answers are watched for word loops.")
    models = serializers.SerializerMethodField(help_text="Null: all that the tenant may use.")
    state = serializers.SerializerMethodField(
        help_text="`stopped`: its person or tenant is switched off, or the person has left the tenant."
    )
    created_at = serializers.DateTimeField()
    created_by = CharField(source="created_by.username", default=None, allow_null=True)
    expires_at = serializers.DateTimeField(allow_null=True)
    last_used_at = serializers.DateTimeField(allow_null=True)
    last_used_from = CharField(allow_null=True, help_text="An address.")
    last_used_with = CharField(help_text="The name that the program gave.")
    revoked_at = serializers.DateTimeField(allow_null=True)
    revoked_because = CharField(help_text="`leaked`: the key was found in the wrong place.")
    replaces = CharField(source="replaces.prefix", default=None, allow_null=True)
    replaced_by = CharField(source="replaced_by.prefix", default=None, allow_null=True)

    def get_models(self, key: ApiKey) -> list[str] | None:
        return None if key.every_model else sorted(model.name for model in key.allowed_models.all())

    def get_state(self, key: ApiKey) -> queries.KeyState:
        return queries.state_of(key)


class UserSecret(serializers.Serializer[Any]):
    """The secret with which a service signs its end users. Store it now: it is never shown again."""

    secret = CharField()
    settings = serializers.ListField(child=CharField(), help_text="Lines for the environment of Open WebUI.")


class KeyWithText(Key):
    text = CharField(help_text="The key itself. Store it now: it is never shown again.")


class KeyFilter(serializers.Serializer[Any]):
    tenant = AnyTenant(required=False)
    kind = serializers.ChoiceField(["personal", "service"], required=False)
    state = serializers.ChoiceField(queries.KeyState.choices, required=False)
    name = CharField(
        required=False, help_text="Part of its name, purpose, service, prefix, tenant or responsible person."
    )
    ordering = serializers.ChoiceField(
        ["-created_at", "created_at", "name", "-name", "expires_at", "-expires_at", "last_used_at", "-last_used_at"],
        required=False,
        default="-created_at",
    )


class KeySettings(KnownFields):
    """What the holder of a key or a tenant admin decides about it."""

    name = CharField(validators=[check_one_line], max_length=60, required=False)
    purpose = CharField(validators=[check_one_line], max_length=200, required=False, allow_blank=True)
    key_class = serializers.ChoiceField(
        ApiKey.CHOOSABLE, required=False, help_text="`batch`: calls of `interactive` keys go first."
    )
    networks = serializers.ListField(
        child=CharField(max_length=50),
        required=False,
        max_length=20,
        help_text="As 10.1.0.0/16 or 192.168.7.5. Calls from elsewhere are refused; empty: from everywhere.",
    )
    takes_user_headers = serializers.BooleanField(
        required=False, help_text="Usage is listed by the people that Open WebUI names in its headers."
    )
    loop_guard = serializers.BooleanField(
        required=False, help_text="False: answers are not watched for word loops, whatever their model's settings say."
    )
    # Not by `many=True`, which does not pass `allow_null` on.
    models = serializers.ManyRelatedField(
        child_relation=AnyModel(),
        required=False,
        allow_null=True,
        allow_empty=False,
        help_text="Null: all that the tenant may use.",
    )
    expires_at = DateTimeField(required=False, allow_null=True, help_text="Null: never.")
    responsible = Colleague(
        required=False, allow_null=True, help_text="User name of a member of the tenant. For service keys only."
    )

    def validate_networks(self, words: list[str]) -> list[str]:
        return list(dict.fromkeys(networks.parse_network(word) for word in words))

    def validate_expires_at(self, at: Any) -> Any:
        if at is not None and at <= timezone.now():
            raise serializers.ValidationError(_("Choose a time in the future. To stop a key now, revoke it."))
        check_expiry(at)
        return at

    def check_models(self, tenant: Tenant, chosen: list[Any] | None) -> None:
        allowed = set(open_to([tenant]).values_list("pk", flat=True)) if chosen else set()
        for model in chosen or ():
            if model.pk not in allowed:
                sentence = _("%(tenant)s may not use %(model)s. Choose another model or another tenant.")
                raise serializers.ValidationError({"models": sentence % {"tenant": tenant, "model": model}})

    def check_responsible(self, responsible: Any, service: str) -> None:
        if responsible and not service:
            raise serializers.ValidationError({"responsible": _("Only a service key has a responsible person.")})


class NewKey(KeySettings):
    """With `service` a service key of a tenant that you administer, else a personal key of a tenant of yours."""

    name = CharField(validators=[check_one_line], max_length=60)
    tenant = AnyTenant()
    service = CharField(validators=[check_one_line], max_length=60, required=False, default="", allow_blank=True)
    expires_at = DateTimeField(
        required=False, allow_null=True, help_text="Null: never. Left out: after as many days as the tenant proposes."
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        self.check_models(values["tenant"], values.get("models"))
        self.check_responsible(values.get("responsible"), values["service"])
        return values


class KeyChange(KeySettings):
    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        key = self.context["key"]
        self.check_models(key.tenant, values.get("models"))
        self.check_responsible(values.get("responsible"), key.service)
        return values


class Revocation(KnownFields):
    because = CharField(
        validators=[check_one_line],
        max_length=200,
        required=False,
        default="",
        allow_blank=True,
        help_text="For the people concerned, and the audit.",
    )


class Rotation(KnownFields):
    overlap_hours = serializers.IntegerField(
        required=False,
        default=24,
        min_value=0,
        max_value=LONGEST_OVERLAP,
        help_text="How long the old key keeps working. 0: it stops now.",
    )


class LeakedText(KnownFields):
    text = CharField(max_length=100_000, help_text="The key, or the text around it. It is not stored.")


class LeakedKeys(serializers.Serializer[Any]):
    """Prefixes of the keys in the text that are ours."""

    revoked = serializers.ListField(child=CharField(), help_text="Revoked now.")
    known = serializers.ListField(child=CharField(), help_text="Revoked before.")
    strange = serializers.IntegerField(help_text="How many more look like keys but are not ours.")


class CatalogueModel(serializers.Serializer[Any]):
    """A model that you may call."""

    name = CharField()
    aliases = serializers.ListField(child=CharField(), help_text="Other names that lead to it.")
    description = CharField(help_text="In the language that the request accepts.")
    task = CharField()
    context = serializers.IntegerField(  # type: ignore[assignment]
        allow_null=True, help_text="Tokens in a request; null: not specified."
    )
    state = serializers.ChoiceField(Liveness.choices, help_text="Whether it would answer a call now.")
    retires_on = serializers.DateField(allow_null=True)
    loops = serializers.ChoiceField(ServedModel.Loops.choices, help_text="What is done about an answer in a word loop.")
    sampling = serializers.SerializerMethodField(
        help_text="Parameters that are set or bounded for you, and how, in the language that the request accepts."
    )

    def get_sampling(self, model: AvailableModel) -> dict[str, str]:
        return dict(model.sampling)


class ManagementKey(serializers.Serializer[Any]):
    prefix = CharField()
    name = CharField()
    scopes = serializers.ListField(child=CharField())
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)
    last_used_at = serializers.DateTimeField(allow_null=True)


class ManagementKeyWithText(ManagementKey):
    text = CharField(help_text="The key itself. Store it now: it is never shown again.")


class NewManagementKey(KnownFields):
    name = CharField(validators=[check_one_line], max_length=60)
    scopes = serializers.ListField(
        child=serializers.ChoiceField([(name, scope.label) for name, scope in scopes.SCOPES.items()]), allow_empty=False
    )
    expires_at = DateTimeField(help_text="Within a year.")
