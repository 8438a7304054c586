"""The person who calls, and their tenants, in the API."""

from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from portal.accounts import serializers as shapes
from portal.api.bodies import me
from portal.api.permissions import People
from portal.keys.models import ManagementKey


class MeView(APIView):
    subject = ""
    permission_classes = [People]

    @extend_schema(operation_id="me", summary=_("Who you are, and what this key may do"), responses={200: shapes.Me})
    def get(self, request: Request) -> Response:
        """For every management key."""
        person = me(request)
        person.places = person.memberships.select_related("tenant").order_by("tenant__slug")  # type: ignore[attr-defined]
        person.key = request.auth if isinstance(request.auth, ManagementKey) else None  # type: ignore[attr-defined]
        return Response(shapes.Me(person).data)


class SettingsView(APIView):
    subject = "notices"
    permission_classes = [People]

    @extend_schema(operation_id="settings", summary=_("Your settings"), responses={200: shapes.Settings})
    def get(self, request: Request) -> Response:
        return Response(shapes.Settings(me(request)).data)

    @extend_schema(
        operation_id="settings_change",
        summary=_("Change your settings"),
        request=shapes.Settings(partial=True),
        responses={200: shapes.Settings},
    )
    def patch(self, request: Request) -> Response:
        """Changes what is sent."""
        filled = shapes.Settings(me(request), data=request.data, partial=True)
        filled.is_valid(raise_exception=True)
        filled.save()
        return Response(filled.data)
