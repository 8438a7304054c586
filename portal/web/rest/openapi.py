"""How the API describes itself (OpenAPI), as far as it is the same for all of it.

What an endpoint does and answers stands at the endpoint. Which errors it may answer follows from what it takes, so it
stands here.
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
    """Why it was not done (RFC 9457), in the language that the request accepts."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField(required=False)
    errors = Fault(many=True, required=False)  # type: ignore[assignment]


class Operation(AutoSchema):
    """An endpoint's description with the errors that all of its kind may answer."""

    def get_operation(self, *args: Any, **options: Any) -> dict[str, Any] | None:
        told: dict[str, Any] | None = super().get_operation(*args, **options)
        if told is not None:
            for code in sorted(self._errors(told) - told["responses"].keys()):
                told["responses"][code] = self._get_response_for_code(  # type: ignore[no-untyped-call]
                    Problem, code, [MEDIA_TYPE]
                )
        return told

    def _errors(self, told: dict[str, Any]) -> set[str]:
        places = {parameter["in"] for parameter in told.get("parameters", [])}
        found = {"401", "403", "429"}
        if "query" in places or "requestBody" in told:
            found |= {"400"}
        if "requestBody" in told:
            found |= {"415"}
        if "path" in places or "query" in places:  # such a page of a list, too, may not be there
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
