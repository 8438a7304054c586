"""The parts of the API's description (OpenAPI) that are the same for all endpoints.

Each endpoint describes what it does and returns. Which errors it may return follows from what it takes, and is added
here.
"""

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from rest_framework import serializers

from portal.web.rest.problems import MEDIA_TYPE


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
