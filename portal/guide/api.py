"""The house rules in the API: for all to read, for operators to write."""

from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from portal.accounts.api_permissions import Operators, SignedIn
from portal.guide import house_rules
from portal.guide import serializers as shapes
from portal.web.rest.problems import Conflict
from portal.web.rest.scopes import READING
from portal.web.rest.validation import validated


class HouseRulesView(APIView):
    subject = "news"

    def get_permissions(self) -> list[Any]:
        """Let only operators write."""
        return [SignedIn() if self.request.method in READING else Operators()]

    @extend_schema(
        operation_id="house_rules", summary=gettext_lazy("The house rules"), responses={200: shapes.HouseRules}
    )
    def get(self, request: Request) -> Response:
        """Return what holds for the use of models here: the company's rules, else those that come along."""
        row, shown = house_rules.stored_rules(), house_rules.read_rules()
        found = {
            **{name: getattr(row, name) for name in ("edition", *house_rules.TEXTS)},
            **{name: getattr(shown, name) for name in ("rules", "contact", "is_default", "changed_at")},
        }
        return Response(shapes.HouseRules(found).data)

    @extend_schema(
        operation_id="house_rules_change",
        summary=gettext_lazy("Write the house rules"),
        request=shapes.ChangedHouseRules,
        responses={200: shapes.HouseRules},
    )
    def patch(self, request: Request) -> Response:
        """Change the texts that are sent. 409 if another operator changed them since `edition` was read."""
        texts = validated(shapes.ChangedHouseRules, request.data)
        edition = texts.pop("edition")
        try:
            house_rules.write_rules(texts, edition)
        except house_rules.RulesChanged as error:
            raise Conflict(_("Another operator changed these texts meanwhile. Read them again.")) from error
        return self.get(request)
