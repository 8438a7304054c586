"""The parts of the API's description (OpenAPI) that are the same for all endpoints.

Each endpoint describes what it does and returns. Which errors it may return follows from what it takes, and is added
here.
"""

from typing import Any, ClassVar

from django.utils.translation import get_language
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.settings import spectacular_settings
from rest_framework import serializers
from rest_framework.request import Request

from portal.web.rest.problems import MEDIA_TYPE

KEPT = 32  # descriptions: one for each language and set of operations, of which roles make a few


class Fault(serializers.Serializer[Any]):
    pointer = serializers.CharField(help_text="JSON pointer into what was sent; `#` is the whole.")
    detail = serializers.CharField()


class Problem(serializers.Serializer[Any]):
    """Why the request was not carried out (RFC 9457), in the language that the request accepts."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField(required=False)
    errors = Fault(many=True, required=False)  # type: ignore[assignment]


class Operation(AutoSchema):
    """An endpoint's description, with the errors that all endpoints of its kind may return."""

    def get_operation(self, *args: Any, **options: Any) -> dict[str, Any] | None:
        operation: dict[str, Any] | None = super().get_operation(*args, **options)
        if operation is not None:
            for code in sorted(self._errors(operation) - operation["responses"].keys()):
                operation["responses"][code] = self._get_response_for_code(  # type: ignore[no-untyped-call]
                    Problem, code, [MEDIA_TYPE]
                )
        return operation

    def _errors(self, operation: dict[str, Any]) -> set[str]:
        places = {parameter["in"] for parameter in operation.get("parameters", [])}
        found = {"401", "403", "429"}
        if "query" in places or "requestBody" in operation:
            found |= {"400"}
        if "requestBody" in operation:
            found |= {"415"}
        if "path" in places or "query" in places:  # such a page of a list may not exist, either
            found |= {"404"}
        if self.method != "GET":
            found |= {"409"}
        return found


class ManagementKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "portal.keys.management_key_authentication.WithManagementKey"
    name = "managementKey"
    priority = 1

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "mdm_…"}


class DescriptionGenerator(SchemaGenerator):
    """Describes the API once for all who may use the same operations and read the same language."""

    kept: ClassVar[dict[tuple[object, ...], dict[str, Any]]] = {}

    def get_schema(self, request: Request | None = None, public: bool = False) -> dict[str, Any]:
        wanted = (get_language(), public, *self._find_operations(request, public))
        found = self.kept.get(wanted)
        if found is None:
            found = super().get_schema(request, public)  # type: ignore[no-untyped-call]
            if len(self.kept) >= KEPT:
                self.kept.clear()
            self.kept[wanted] = found
        return found

    def _find_operations(self, request: Request | None, public: bool) -> list[tuple[str, str]]:
        """Return the paths and methods that the caller may use: what `parse` describes."""
        self._initialise_endpoints()  # type: ignore[no-untyped-call]
        found = []
        for path, _, method, view in self._get_paths_and_endpoints():  # type: ignore[no-untyped-call]
            view.request = spectacular_settings.GET_MOCK_REQUEST(method, path, view, request)
            if public or self.has_view_permissions(path, method, view):
                found.append((path, method))
        return found
