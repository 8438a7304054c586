"""Webhooks in the API, for operators. Their addresses are secrets: they are taken, and shown shortened."""

from typing import Any

from django.core.exceptions import ValidationError as WrongValue
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.validators import UniqueValidator
from rest_framework.viewsets import GenericViewSet

from modelregistry.one_line import check_one_line
from portal.notifications import posting, webhooks
from portal.notifications.models import LANGUAGES
from portal.notifications.models import Webhook as Row
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.strict_fields import CharField, ChoiceField, KnownFields
from portal.web.rest.validation import validated

KINDS = [*webhooks.OPERATOR_KINDS.items()]


class Webhook(serializers.Serializer[Row]):
    id = serializers.IntegerField()
    name = serializers.CharField()
    style = serializers.ChoiceField(Row.Style.choices)  # type: ignore[assignment]  # an attribute of each field
    address = serializers.SerializerMethodField(help_text="Shortened: who knows all of it can post.")
    language = serializers.ChoiceField(LANGUAGES)
    kinds = serializers.ListField(child=serializers.CharField(), help_text="Of the notices that are posted.")
    is_active = serializers.BooleanField()
    succeeded_at = serializers.DateTimeField(allow_null=True)
    failed_at = serializers.DateTimeField(allow_null=True)
    fault = serializers.ChoiceField(Row.Fault.choices, allow_blank=True, help_text="Of the last failure.")
    status = serializers.IntegerField(help_text="Of the answer to the last failure, 0 without one.")
    failures = serializers.IntegerField(help_text="Since the last success.")
    retry_at = serializers.DateTimeField(allow_null=True)

    def get_address(self, webhook: Row) -> str:
        return webhooks.shorten_url(webhook.url)


class NewWebhook(KnownFields):
    name = CharField(max_length=60, validators=[check_one_line, UniqueValidator(Row.objects.all())])
    style = ChoiceField(Row.Style.choices)  # type: ignore[assignment]
    url = CharField(max_length=1000, help_text="As Teams or Slack gave it. It is not shown again.")
    language = ChoiceField(LANGUAGES, required=False, default="ja")
    kinds = serializers.ListField(
        child=ChoiceField(KINDS),
        min_length=1,
        max_length=len(KINDS),
        required=False,
        default=[*webhooks.OPERATOR_KINDS],
    )
    is_active = serializers.BooleanField(required=False, default=True)

    def validate_url(self, url: str) -> str:
        try:
            posting.check_url(url)
        except WrongValue as error:
            raise ValidationError(error.messages) from error
        return url


class TestResult(serializers.Serializer[Any]):
    result = serializers.ChoiceField(
        [("accepted", "accepted"), ("failed", "failed"), ("waiting", "waiting")],
        help_text="`waiting`: there is no answer yet; the webhook itself shows what comes of it within 10 seconds.",
    )
    webhook = Webhook()


class Webhooks(GenericViewSet[Row]):
    subject = "operations"
    queryset = Row.objects.all()
    serializer_class = Webhook
    pagination_class = ListPagination
    lookup_value_converter = "int"

    @extend_schema(summary=_("Webhooks"), responses={200: Webhook(many=True)})
    def list(self, request: Request) -> Response:
        page = self.paginate_queryset(self.get_queryset()) or []
        return self.get_paginated_response([Webhook(row).data for row in page])

    @extend_schema(summary=_("One webhook"), responses={200: Webhook})
    def retrieve(self, request: Request, pk: int) -> Response:
        return Response(Webhook(self.get_object()).data)

    @extend_schema(summary=_("Add a webhook"), request=NewWebhook, responses={201: Webhook})
    def create(self, request: Request) -> Response:
        """Have notices for operators posted to an address. At most 20 webhooks."""
        row = webhooks.save_webhook(Row(**validated(NewWebhook, request.data)))
        return Response(Webhook(row).data, status.HTTP_201_CREATED)

    @extend_schema(summary=_("Change a webhook"), request=NewWebhook(partial=True), responses={200: Webhook})
    def partial_update(self, request: Request, pk: int) -> Response:
        """Change what is sent. It is tried again at once."""
        with transaction.atomic():
            webhooks.lock_webhooks()  # before the row is read: what another operator changes meanwhile stays
            row = self.get_object()
            sent = NewWebhook(row, data=request.data, partial=True)
            sent.is_valid(raise_exception=True)
            for name, value in sent.validated_data.items():
                setattr(row, name, value)
            return Response(Webhook(webhooks.save_webhook(row)).data)

    @extend_schema(summary=_("Delete a webhook"), responses={204: None})
    def destroy(self, request: Request, pk: int) -> Response:
        self.get_object().delete()
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(summary=_("Send a test"), request=None, responses={200: TestResult})
    @action(detail=True, methods=["post"])
    def test(self, request: Request, pk: int) -> Response:
        """Post a test message, and wait three seconds at most for what comes of it."""
        row = self.get_object()
        delivery = webhooks.send_test(row, timezone.now())
        result = "waiting" if delivery is None else "failed" if delivery.fault else "accepted"
        return Response({"result": result, "webhook": Webhook(row).data})
