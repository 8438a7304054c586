"""API keys, models to call with them, and management keys, in the API. Keys of others are as if they did not exist."""

from datetime import timedelta
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.debug import sensitive_variables
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from modelregistry import routes
from portal.accounts import permissions
from portal.accounts.api_permissions import SignedIn
from portal.accounts.models import Tenant, User
from portal.accounts.permissions import current_user
from portal.keys import end_user_secret, leaked_keys, lifecycle, management_keys, model_access, queries
from portal.keys import serializers as shapes
from portal.keys.models import ApiKey, ManagementKey
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.validation import validated


class Keys(GenericViewSet[ApiKey]):
    subject = "keys"
    permission_classes = [SignedIn]
    queryset = ApiKey.objects.none()  # for the schema; see get_queryset
    serializer_class = shapes.Key
    pagination_class = ListPagination
    lookup_field = "prefix"
    lookup_value_converter = "slug"

    def get_queryset(self) -> QuerySet[ApiKey]:
        return queries.viewable_by(current_user(self.request))

    @extend_schema(
        summary=gettext_lazy("API keys: yours, and service keys that you manage or are responsible for"),
        parameters=[shapes.KeyFilter],
        responses={200: shapes.Key(many=True)},
    )
    def list(self, request: Request) -> Response:
        wanted = validated(shapes.KeyFilter, request.query_params, user=current_user(request))
        rows = queries.with_shown_fields(filter_keys(self.get_queryset(), wanted)).order_by(wanted["ordering"], "pk")
        page = self.paginate_queryset(rows) or []
        return self.get_paginated_response([shapes.Key(key).data for key in page])

    @extend_schema(summary=gettext_lazy("One API key"), responses={200: shapes.Key})
    def retrieve(self, request: Request, prefix: str) -> Response:
        return key_response(self.get_object())

    @extend_schema(
        summary=gettext_lazy("Create an API key"), request=shapes.NewKey, responses={201: shapes.KeyWithText}
    )
    @sensitive_variables("text")
    def create(self, request: Request) -> Response:
        """Return the new key with its text, this once."""
        values = validated(shapes.NewKey, request.data, user=current_user(request))
        tenant, service = values.pop("tenant"), values.pop("service")
        check_may_create(current_user(request), tenant, service)
        if "expires_at" not in values and tenant.key_days:
            values["expires_at"] = timezone.now() + timedelta(days=tenant.key_days)
        models = values.pop("models", None)
        key, text = lifecycle.request_key(
            **values,
            tenant=tenant,
            service=service,
            user=None if service else current_user(request),
            allowed_models=models or (),
            created_by=current_user(request),
        )
        return key_response(key, status.HTTP_201_CREATED, text)

    @extend_schema(summary=gettext_lazy("Change an API key"), request=shapes.KeyChange, responses={200: shapes.Key})
    def partial_update(self, request: Request, prefix: str) -> Response:
        """Change what is sent."""
        key = self._manageable_key()
        values = validated(shapes.KeyChange, request.data, user=current_user(request), key=key)
        if "models" in values:
            values["allowed_models"] = values.pop("models")
        lifecycle.change_key(key, by=current_user(request), **values)
        return key_response(key)

    @extend_schema(
        summary=gettext_lazy("Replace an API key with a new one"),
        request=shapes.Rotation,
        responses={201: shapes.KeyWithText},
    )
    @action(detail=True, methods=["post"])
    @sensitive_variables("text")
    def rotate(self, request: Request, prefix: str) -> Response:
        """Return the new key with its text, this once. The old one keeps working for the overlap."""
        overlap = timedelta(hours=validated(shapes.Rotation, request.data)["overlap_hours"])
        new, text = lifecycle.rotate_key(self._manageable_key(), overlap, by=current_user(request))
        return key_response(new, status.HTTP_201_CREATED, text)

    @extend_schema(
        summary=gettext_lazy("Create or replace the secret that signs end users"),
        request=None,
        responses={201: shapes.UserSecret},
    )
    @action(detail=True, methods=["post"], url_path="user-secret")
    @sensitive_variables("text")
    def user_secret(self, request: Request, prefix: str) -> Response:
        """Return the secret, this once. From then on people are named only by tokens that are signed with it."""
        text = end_user_secret.make_user_secret(self._manageable_key(), by=current_user(request))
        return Response({"secret": text, "settings": end_user_secret.webui_settings(text)}, status.HTTP_201_CREATED)

    @extend_schema(summary=gettext_lazy("Remove the secret that signs end users"), responses={204: None})
    @user_secret.mapping.delete
    def remove_user_secret(self, request: Request, prefix: str) -> Response:
        """Believe names without a signature again."""
        end_user_secret.remove_user_secret(self._manageable_key(), by=current_user(request))
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(summary=gettext_lazy("Revoke an API key"), request=shapes.Revocation, responses={200: shapes.Key})
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, prefix: str) -> Response:
        """Revoke the key for good. It stops working within 2 seconds. Revoking twice changes nothing."""
        key = self._manageable_key()
        lifecycle.revoke_key(key, validated(shapes.Revocation, request.data)["because"], by=current_user(request))
        return key_response(key)

    @extend_schema(
        summary=gettext_lazy("Report a leaked key and revoke it"),
        request=shapes.LeakedText,
        responses={200: shapes.LeakedKeys},
    )
    @action(detail=False, methods=["post"], url_path="found")
    @sensitive_variables()
    def report_leaked(self, request: Request) -> Response:
        """Revoke every API key and management key whose full text is sent, no matter to which person it belongs."""
        text = validated(shapes.LeakedText, request.data)["text"]
        found = leaked_keys.revoke_leaked(text, by=current_user(request))
        revoked = [key.prefix for key in (*found.revoked, *found.revoked_management)]
        return Response({"revoked": revoked, "known": [key.prefix for key in found.known], "strange": found.strange})

    def _manageable_key(self) -> ApiKey:
        """Return the key of the address. Raises PermissionDenied for callers who may only see it."""
        key = self.get_object()
        managed = queries.manageable_by(current_user(self.request)).filter(pk=key.pk).first()
        if managed is None:
            raise PermissionDenied(_("Only an admin of the tenant can do this."))
        return managed


class CatalogueModels(GenericViewSet[Any]):
    subject = "catalogue"
    permission_classes = [SignedIn]
    serializer_class = shapes.CatalogueModel
    pagination_class = ListPagination
    queryset = routes.offered_models().none()

    @extend_schema(
        summary=gettext_lazy("Models that you may call, and whether they answer now"),
        responses={200: shapes.CatalogueModel(many=True)},
    )
    def list(self, request: Request) -> Response:
        """Return the models, those that are best to try first."""
        person = current_user(request)
        offers = sorted(model_access.available_models(model_access.offered_to(person)), key=model_access.sort_key)
        return self.get_paginated_response(
            [dict(shapes.CatalogueModel(offer).data) for offer in self.paginate_queryset(offers) or []]
        )


class ManagementKeys(GenericViewSet[ManagementKey]):
    """The caller's management keys. From a session only: a leaked key must not create keys that outlive it."""

    subject = None
    permission_classes = [SignedIn]
    queryset = ManagementKey.objects.none()
    serializer_class = shapes.ManagementKey
    pagination_class = ListPagination
    lookup_field = "prefix"
    lookup_value_converter = "slug"

    def get_queryset(self) -> QuerySet[ManagementKey]:
        return management_keys.keys_of(current_user(self.request))

    @extend_schema(summary=gettext_lazy("Your management keys"), responses={200: shapes.ManagementKey(many=True)})
    def list(self, request: Request) -> Response:
        """Return the caller's keys, from a session only, as everything about management keys."""
        page = self.paginate_queryset(self.get_queryset()) or []
        return self.get_paginated_response([shapes.ManagementKey(key).data for key in page])

    @extend_schema(
        summary=gettext_lazy("Create a management key"),
        request=shapes.NewManagementKey,
        responses={201: shapes.ManagementKeyWithText},
    )
    @sensitive_variables("text", "key")
    def create(self, request: Request) -> Response:
        """Return the new key with its text, this once."""
        values = validated(shapes.NewManagementKey, request.data)
        key, text = management_keys.issue_management_key(
            user=current_user(request), name=values["name"], scopes_=values["scopes"], expires_at=values["expires_at"]
        )
        return Response({**shapes.ManagementKey(key).data, "text": text}, status.HTTP_201_CREATED)

    @extend_schema(summary=gettext_lazy("Revoke a management key"), request=None, responses={200: shapes.ManagementKey})
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, prefix: str) -> Response:
        """Revoke the key for good and at once."""
        key = self.get_object()
        management_keys.revoke_management_key(current_user(request), key)
        return Response(shapes.ManagementKey(key).data)


def key_response(key: ApiKey, code: int = status.HTTP_200_OK, text: str = "") -> Response:
    """Return the key as it is now, with its text if it is new."""
    shown = queries.with_shown_fields(ApiKey.objects.filter(pk=key.pk)).get()
    return Response({**shapes.Key(shown).data, **({"text": text} if text else {})}, code)


def filter_keys(keys: QuerySet[ApiKey], wanted: dict[str, Any]) -> QuerySet[ApiKey]:
    if tenant := wanted.get("tenant"):
        keys = keys.filter(tenant=tenant)
    if kind := wanted.get("kind"):
        keys = keys.filter(user__isnull=kind == "service")
    if name := wanted.get("name"):
        keys = queries.search_keys(keys, name)
    return keys.filter(state_condition(wanted["state"])) if "state" in wanted else keys


def state_condition(state: str) -> Q:
    """Return the condition of keys for which `queries.state_of` returns `state`."""
    expired = Q(expires_at__isnull=False, expires_at__lte=timezone.now())
    return {
        queries.KeyState.REVOKED.value: Q(revoked_at__isnull=False),
        queries.KeyState.EXPIRED.value: Q(revoked_at__isnull=True) & expired,
        queries.KeyState.STOPPED.value: Q(revoked_at__isnull=True) & ~expired & ~Q(queries.is_usable()),
        queries.KeyState.WORKS.value: Q(queries.is_usable()),
    }[state]


def check_may_create(user: User, tenant: Tenant, service: str) -> None:
    """Raise PermissionDenied unless this person may create such a key of the tenant."""
    if service and not permissions.administered_tenants(user).filter(pk=tenant.pk).exists():
        raise PermissionDenied(_("Only an admin of the tenant can create service keys."))
    if not service and not permissions.own_tenants(user).filter(pk=tenant.pk).exists():
        raise PermissionDenied(_("You can create personal keys only for an active tenant that you belong to."))
    if not tenant.is_active:
        raise PermissionDenied(_("This tenant is switched off."))
