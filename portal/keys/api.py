"""API keys, models to call with them, and management keys, in the API. A key that is not yours is not there."""

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
from portal.accounts.api_permissions import People
from portal.accounts.models import Tenant, User
from portal.accounts.permissions import current_user
from portal.keys import leaked_keys, lifecycle, model_access, queries
from portal.keys import management_keys as management
from portal.keys import serializers as shapes
from portal.keys.models import ApiKey, ManagementKey
from portal.web.rest.list_pages import Pages
from portal.web.rest.problems import Conflict
from portal.web.rest.validation import validated


class Keys(GenericViewSet[ApiKey]):
    subject = "keys"
    permission_classes = [People]
    queryset = ApiKey.objects.none()  # of whom, the request says
    serializer_class = shapes.Key
    pagination_class = Pages
    lookup_field = "prefix"
    lookup_value_converter = "slug"

    def get_queryset(self) -> QuerySet[ApiKey]:
        return queries.viewable_by(current_user(self.request))

    @extend_schema(
        summary=gettext_lazy("API keys: yours, and service keys that you manage or answer for"),
        parameters=[shapes.KeyFilter],
        responses={200: shapes.Key(many=True)},
    )
    def list(self, request: Request) -> Response:
        wanted = validated(shapes.KeyFilter, request.query_params, user=current_user(request))
        rows = queries.shown_keys(narrowed(self.get_queryset(), wanted)).order_by(wanted["ordering"], "pk")
        page = self.paginate_queryset(rows) or []
        return self.get_paginated_response([shapes.Key(key).data for key in page])

    @extend_schema(summary=gettext_lazy("One API key"), responses={200: shapes.Key})
    def retrieve(self, request: Request, prefix: str) -> Response:
        return answer(self.get_object())

    @extend_schema(summary=gettext_lazy("Create an API key"), request=shapes.NewKey, responses={201: shapes.MadeKey})
    @sensitive_variables("text")
    def create(self, request: Request) -> Response:
        """Return the answer holds the text of the key, this once."""
        values = validated(shapes.NewKey, request.data, user=current_user(request))
        tenant, service = values.pop("tenant"), values.pop("service")
        may_make(current_user(request), tenant, service)
        if "expires_at" not in values and tenant.key_days:
            values["expires_at"] = timezone.now() + timedelta(days=tenant.key_days)
        whose = {"tenant": tenant, "service": service, "user": None if service else current_user(request)}
        chosen = values.pop("models", None) or ()
        key, text = carried_out(
            lambda: lifecycle.issue_key(**whose, **values, allowed_models=chosen, created_by=current_user(request))
        )
        return answer(key, status.HTTP_201_CREATED, text)

    @extend_schema(summary=gettext_lazy("Change an API key"), request=shapes.ChangedKey, responses={200: shapes.Key})
    def partial_update(self, request: Request, prefix: str) -> Response:
        """Change what is sent."""
        key = self._manageable()
        values = validated(shapes.ChangedKey, request.data, user=current_user(request), key=key)
        if "models" in values:
            values["allowed_models"] = values.pop("models")
        carried_out(lambda: lifecycle.change_key(key, by=current_user(request), **values))
        return answer(key)

    @extend_schema(
        summary=gettext_lazy("Replace an API key by a new one"),
        request=shapes.Rotation,
        responses={201: shapes.MadeKey},
    )
    @action(detail=True, methods=["post"])
    @sensitive_variables("text")
    def rotate(self, request: Request, prefix: str) -> Response:
        """Return the answer is the new key with its text, this once. The old one goes on working for the overlap."""
        key = self._manageable()
        overlap = timedelta(hours=validated(shapes.Rotation, request.data)["overlap_hours"])
        new, text = carried_out(lambda: lifecycle.rotate_key(key, overlap, by=current_user(request)))
        return answer(new, status.HTTP_201_CREATED, text)

    @extend_schema(summary=gettext_lazy("Revoke an API key"), request=shapes.Revocation, responses={200: shapes.Key})
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, prefix: str) -> Response:
        """For good; it stops working within 2 seconds. Revoking twice changes nothing."""
        key = self._manageable()
        lifecycle.revoke_key(key, validated(shapes.Revocation, request.data)["because"], by=current_user(request))
        return answer(key)

    @extend_schema(
        summary=gettext_lazy("Found a key somewhere it must not be? End it"),
        request=shapes.Finding,
        responses={200: shapes.Found},
    )
    @action(detail=False, methods=["post"])
    @sensitive_variables()
    def found(self, request: Request) -> Response:
        """Revoke every key, also of management, whose full text is in what is sent, whosever it is."""
        ended = leaked_keys.revoke_leaked(validated(shapes.Finding, request.data)["text"], by=current_user(request))
        revoked = [*(key.prefix for key in ended.ended), *(key.prefix for key in ended.ended_management)]
        return Response({"revoked": revoked, "known": [key.prefix for key in ended.known], "strange": ended.strange})

    def _manageable(self) -> ApiKey:
        """Return the key of the address if the caller may change it. Who may only see it is told so."""
        key = self.get_object()
        managed = queries.manageable_by(current_user(self.request)).filter(pk=key.pk).first()
        if managed is None:
            raise PermissionDenied(_("Only an admin of the tenant can do this."))
        return managed


class Catalogue(GenericViewSet[Any]):
    subject = "catalogue"
    permission_classes = [People]
    serializer_class = shapes.Offer
    pagination_class = Pages
    queryset = routes.offered_models().none()

    @extend_schema(
        summary=gettext_lazy("Models that you may call, and whether they answer now"),
        responses={200: shapes.Offer(many=True)},
    )
    def list(self, request: Request) -> Response:
        """Return those that are best to try first."""
        person = current_user(request)
        open_ = (
            routes.offered_models()
            if permissions.may_operate(person)
            else model_access.open_to(permissions.own_tenants(person))
        )
        offers = sorted(model_access.available_models(open_), key=model_access.sort_key)
        return self.get_paginated_response(
            [dict(shapes.Offer(offer).data) for offer in self.paginate_queryset(offers) or []]
        )


class ManagementKeys(GenericViewSet[ManagementKey]):
    """From a session only: a key that leaked must not be able to make others that outlive it."""

    subject = None
    permission_classes = [People]
    queryset = ManagementKey.objects.none()
    serializer_class = shapes.ManagementKey
    pagination_class = Pages
    lookup_field = "prefix"
    lookup_value_converter = "slug"

    def get_queryset(self) -> QuerySet[ManagementKey]:
        return management.keys_of(current_user(self.request))

    @extend_schema(summary=gettext_lazy("Your management keys"), responses={200: shapes.ManagementKey(many=True)})
    def list(self, request: Request) -> Response:
        """With a session only, as everything about management keys."""
        page = self.paginate_queryset(self.get_queryset()) or []
        return self.get_paginated_response([shapes.ManagementKey(key).data for key in page])

    @extend_schema(
        summary=gettext_lazy("Create a management key"),
        request=shapes.NewManagementKey,
        responses={201: shapes.MadeManagementKey},
    )
    @sensitive_variables("text", "key")
    def create(self, request: Request) -> Response:
        """Return the answer holds the text of the key, this once."""
        values = validated(shapes.NewManagementKey, request.data)
        key, text = management.issue_management_key(
            user=current_user(request), name=values["name"], scopes_=values["scopes"], expires_at=values["expires_at"]
        )
        return Response({**shapes.ManagementKey(key).data, "text": text}, status.HTTP_201_CREATED)

    @extend_schema(summary=gettext_lazy("Revoke a management key"), request=None, responses={200: shapes.ManagementKey})
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, prefix: str) -> Response:
        """For good and at once."""
        key = self.get_object()
        management.revoke_management_key(current_user(request), key)
        return Response(shapes.ManagementKey(key).data)


def answer(key: ApiKey, code: int = status.HTTP_200_OK, text: str = "") -> Response:
    """Return the key as it is now; with its text if it was made just now."""
    shown = queries.shown_keys(ApiKey.objects.filter(pk=key.pk)).get()
    return Response({**shapes.Key(shown).data, **({"text": text} if text else {})}, code)


def narrowed(keys: QuerySet[ApiKey], wanted: dict[str, Any]) -> QuerySet[ApiKey]:
    if tenant := wanted.get("tenant"):
        keys = keys.filter(tenant=tenant)
    if kind := wanted.get("kind"):
        keys = keys.filter(user__isnull=kind == "service")
    if name := wanted.get("name"):
        keys = queries.search(keys, name)
    return keys.filter(in_state(wanted["state"])) if "state" in wanted else keys


def in_state(state: str) -> Q:
    """As keyring.state tells it."""
    expired = Q(expires_at__isnull=False, expires_at__lte=timezone.now())
    return {
        queries.State.REVOKED.value: Q(revoked_at__isnull=False),
        queries.State.EXPIRED.value: Q(revoked_at__isnull=True) & expired,
        queries.State.STOPPED.value: Q(revoked_at__isnull=True) & ~expired & ~Q(queries.is_usable()),
        queries.State.WORKS.value: Q(queries.is_usable()),
    }[state]


def may_make(user: User, tenant: Tenant, service: str) -> None:
    """Raise PermissionDenied unless this person may make such a key of the tenant."""
    if service and not permissions.administered_tenants(user).filter(pk=tenant.pk).exists():
        raise PermissionDenied(_("Service keys are made by an admin of the tenant."))
    if not service and not permissions.own_tenants(user).filter(pk=tenant.pk).exists():
        raise PermissionDenied(_("You can make keys of your own only for an active tenant to which you belong."))
    if not tenant.is_active:
        raise PermissionDenied(_("This tenant is switched off."))


def carried_out(verb: Any) -> Any:
    """What the verb gives; its refusals as answers."""
    try:
        return verb()
    except lifecycle.KeyRevoked as error:
        raise Conflict(_("This key is revoked.")) from error
    except lifecycle.TooMany as error:
        raise Conflict(error.sentence) from error
    except lifecycle.AlreadyReplaced as error:
        raise Conflict(_("This key has been replaced already.")) from error
    except lifecycle.NotAMember as error:
        raise Conflict(_("This person does not belong to the tenant of the key.")) from error
