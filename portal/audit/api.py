"""The audit log in the API, searched as on its page. The whole log as a file is at `/audit/export/`."""

from typing import Any

from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from portal.accounts.api_fields import AnyTenant
from portal.accounts.api_permissions import SignedIn
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.audit import audit_log
from portal.audit.forms import DAYS
from portal.audit.models import AuditEvent
from portal.web.rest.strict_fields import CharField
from portal.web.rest.validation import validated


class AuditFilter(serializers.Serializer[Any]):
    text = CharField(required=False, max_length=100, help_text="Part of the name of a person or object.")
    who = CharField(required=False, max_length=150, help_text="User name of the person who did it.")
    what = serializers.ChoiceField(list(audit_log.SUBJECTS.items()), required=False, help_text="What it is about.")
    tenant = AnyTenant(required=False)
    since = serializers.DateField(required=False, validators=DAYS, help_text="Day.")
    until = serializers.DateField(required=False, validators=DAYS, help_text="Day, included.")
    kind = CharField(required=False, max_length=40, help_text="Of the object; with `number`.")
    number = CharField(required=False, max_length=64, help_text="Of the object; with `kind`.")
    before = CharField(
        required=False,
        allow_blank=True,
        max_length=60,
        default="",
        help_text="`older` of an answer, for the events after it.",
    )


class AuditRow(serializers.Serializer[Any]):
    """Something that was done. Secrets appear as `set` or `changed`."""

    at = serializers.DateTimeField()
    who = CharField(help_text="User name; empty if no one was signed in.")
    via = serializers.ChoiceField(AuditEvent.Via.choices)
    address = CharField(allow_null=True)
    action = CharField(help_text="As `key.revoke`.")
    kind = CharField()
    id = CharField()
    object = CharField(help_text="Its name at that time.")
    tenant = CharField(allow_null=True)
    before = serializers.DictField(allow_null=True, help_text="The fields that differ.")
    after = serializers.DictField(allow_null=True)


class AuditPage(serializers.Serializer[Any]):
    results = AuditRow(many=True)
    older = CharField(allow_null=True, help_text="The `before` of the next page; null if there are no more.")


class AuditView(APIView):
    subject = "audit"
    permission_classes = [SignedIn]

    @extend_schema(
        operation_id="audit",
        summary=_("Search the audit log"),
        parameters=[AuditFilter],
        responses={200: AuditPage},
    )
    def get(self, request: Request) -> Response:
        """Return the newest first, 50 at a time.

        Operators see all events, others those of the tenants they administer and of themselves.
        """
        wanted = validated(AuditFilter, request.query_params, user=current_user(request))
        cursor = wanted.pop("before")
        if tenant := wanted.get("tenant"):
            wanted["tenant"] = tenant.slug
        events = audit_log.AuditQuery(**wanted).apply(
            audit_log.visible_events(current_user(request)), zone_of(current_user(request))
        )
        found, older = audit_log.read_page(events, cursor)
        return Response(
            AuditPage({"results": [audit_log.export_row(event) for event in found], "older": older or None}).data
        )
