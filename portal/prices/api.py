"""Prices of tokens and budgets of tenants in the API. For operators."""

from typing import Any, ClassVar

from django.core.exceptions import ValidationError as WrongValue
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from portal.accounts.models import Tenant
from portal.accounts.permissions import current_user
from portal.prices import cautions, price_list
from portal.prices.models import MOST_BUDGET, TenantBudget, TokenPrice
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.strict_fields import CharField, KnownFields, ModelSerializer
from portal.web.rest.validation import validated


class Price(ModelSerializer[TokenPrice]):
    class Meta:
        model = TokenPrice
        fields: ClassVar = [
            *("id", "kind", "model", "first_day", "last_day"),
            *("input_price", "output_price", "cached_price", "reference"),
        ]


class SavedPrice(Price):
    """A price that was saved just now."""

    cautions = serializers.ListField(
        child=serializers.ChoiceField(cautions.CODES),
        help_text="All that the page asks about. `no-model`: no model has this name now. `dear`: 1,000 yen or more.",
    )

    class Meta(Price.Meta):
        fields: ClassVar = [*Price.Meta.fields, "cautions"]


class NewPrice(KnownFields, ModelSerializer[TokenPrice]):
    """Amounts are yen for 1,000 tokens."""

    class Meta:
        model = TokenPrice
        fields: ClassVar = [
            *("kind", "model", "first_day", "last_day", "input_price", "output_price", "cached_price", "reference"),
        ]
        validators: ClassVar[
            list[Any]
        ] = []  # `price_list.check_price` says what to do about two prices from one day on


class ChangedPrice(NewPrice):
    class Meta(NewPrice.Meta):
        extra_kwargs: ClassVar = {name: {"required": False} for name in NewPrice.Meta.fields}


class Budget(serializers.Serializer[Any]):
    tenant = CharField(help_text="Short name.")
    yen = serializers.IntegerField(help_text="Of a month.")


class PriceSettings(serializers.Serializer[Any]):
    shown_to_people = serializers.BooleanField(help_text="Everyone sees what their own usage costs.")
    budgets = Budget(many=True)


class PriceSettingsChange(KnownFields):
    shown_to_people = serializers.BooleanField(required=False)
    tenant = CharField(required=False, max_length=50, help_text="Whose budget `yen` is: a short name.")
    yen = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, max_value=MOST_BUDGET, help_text="Null: no budget."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("tenant" in attrs) != ("yen" in attrs):
            raise ValidationError({"tenant": _("Give tenant and yen together.")})
        return attrs


class Prices(GenericViewSet[TokenPrice]):
    subject = "operations"
    queryset = TokenPrice.objects.order_by("kind", "model", "first_day")
    serializer_class = Price
    pagination_class = ListPagination
    lookup_value_converter = "int"

    @extend_schema(summary=_("Prices of tokens"), responses={200: Price(many=True)})
    def list(self, request: Request) -> Response:
        page = self.paginate_queryset(self.get_queryset()) or []
        return self.get_paginated_response(Price(page, many=True).data)

    @extend_schema(summary=_("One price"), responses={200: Price})
    def retrieve(self, request: Request, pk: int) -> Response:
        return Response(Price(self.get_object()).data)

    @extend_schema(summary=_("Add a price"), request=NewPrice, responses={201: SavedPrice})
    def create(self, request: Request) -> Response:
        """Let a model's tokens cost so much from a day on. Past days are computed with it as well."""
        price = TokenPrice(**validated(NewPrice, request.data))
        return Response(self._save(request, price), status.HTTP_201_CREATED)

    @extend_schema(summary=_("Change a price"), request=ChangedPrice, responses={200: SavedPrice})
    def partial_update(self, request: Request, pk: int) -> Response:
        values = validated(ChangedPrice, request.data)
        with transaction.atomic():
            price_list.lock_prices()  # before the row is read: what another operator changes meanwhile stays
            price = self.get_object()
            for name, value in values.items():
                setattr(price, name, value)
            return Response(self._save(request, price))

    @extend_schema(summary=_("Delete a price"), responses={204: None})
    def destroy(self, request: Request, pk: int) -> Response:
        """Let the price before it apply on, if that one has no last day."""
        try:
            price_list.remove_price(self.get_object(), by=current_user(request))
        except WrongValue as error:
            raise ValidationError(error.message_dict) from error
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _save(self, request: Request, price: TokenPrice) -> dict[str, Any]:
        found = cautions.find_cautions(price)
        try:
            price_list.save_price(price, by=current_user(request), today=timezone.localdate())
        except WrongValue as error:
            raise ValidationError(error.message_dict) from error
        return {**Price(price).data, "cautions": [one.code for one in found]}


class PriceSettingsView(APIView):
    subject = "operations"

    @extend_schema(
        summary=_("Budgets, and who sees prices"), operation_id="price_settings", responses={200: PriceSettings}
    )
    def get(self, request: Request) -> Response:
        budgets = TenantBudget.objects.order_by("tenant__slug").values_list("tenant__slug", "yen")
        found = [{"tenant": slug, "yen": yen} for slug, yen in budgets]
        return Response({"shown_to_people": price_list.is_shown_to_people(), "budgets": found})

    @extend_schema(
        summary=_("Set a budget, or who sees prices"),
        operation_id="price_settings_change",
        request=PriceSettingsChange,
        responses={200: PriceSettings},
    )
    def patch(self, request: Request) -> Response:
        values = validated(PriceSettingsChange, request.data)
        tenant = Tenant.objects.filter(slug=values.get("tenant", "")).first()
        if "tenant" in values and tenant is None:
            raise ValidationError({"tenant": _("There is no such tenant.")})
        if "shown_to_people" in values:
            price_list.set_shown_to_people(values["shown_to_people"], by=current_user(request))
        if tenant is not None:
            price_list.set_budget(tenant, values["yen"], by=current_user(request))
        return self.get(request)
