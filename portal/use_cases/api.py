"""Use cases in the API: to read, and to propose."""

from typing import Any

from django.db import transaction
from django.db.models import Prefetch, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from portal.accounts.api_permissions import SignedIn
from portal.accounts.permissions import current_user
from portal.use_cases import gallery, publishing
from portal.use_cases import serializers as shapes
from portal.use_cases.gallery import GalleryQuery, Publisher
from portal.use_cases.models import UseCase, UseCaseText, UseCaseVersion
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.validation import validated


class UseCases(GenericViewSet[UseCase]):
    subject = "use-cases"
    permission_classes = [SignedIn]
    queryset = UseCase.objects.none()
    serializer_class = shapes.UseCase
    pagination_class = ListPagination
    lookup_value_converter = "int"

    @extend_schema(
        summary=gettext_lazy("Published use cases"),
        parameters=[shapes.UseCaseFilter],
        responses={200: shapes.UseCase(many=True)},
    )
    def list(self, request: Request) -> Response:
        """Return the use cases of the whole company and of your tenants."""
        query = GalleryQuery(**validated(shapes.UseCaseFilter, request.query_params))
        found = gallery.search(gallery.visible(current_user(request)), query)
        page = self.paginate_queryset(with_all_texts(found)) or []
        return self.get_paginated_response([describe(case, case.current) for case in page])

    @extend_schema(summary=gettext_lazy("One use case"), responses={200: shapes.UseCase})
    def retrieve(self, request: Request, pk: int) -> Response:
        """Return a published use case, or your own as it was saved last."""
        self.queryset = gallery.readable(current_user(request)).select_related("tenant", "current")
        case = self.get_object()
        return Response(describe(case, case.current or gallery.newest_version(current_user(request), case)))

    @extend_schema(
        summary=gettext_lazy("Propose a use case"), request=shapes.NewUseCase, responses={201: shapes.UseCase}
    )
    def create(self, request: Request) -> Response:
        """Save a use case, and propose it; if you decide for the tenant, it is published at once."""
        by = current_user(request)
        values = validated(shapes.NewUseCase, request.data)
        tenant = gallery.tenants_to_propose_for(by).filter(slug=values["tenant"]).first()
        if tenant is None:
            raise ValidationError({"tenant": [_("You do not belong to this tenant.")]})
        if values["model"] and values["model"] not in gallery.names_for(by):
            raise ValidationError({"model": [_("There is no chat model of this name.")]})
        with transaction.atomic():
            case = publishing.create_case(by, tenant, shapes.content_from(values)).use_case
            if values["propose"] and Publisher(by).may_publish(case):
                publishing.publish(by, case)
            elif values["propose"]:
                publishing.propose(by, case)
        case.refresh_from_db()
        return Response(describe(case, gallery.newest_version(by, case)), status.HTTP_201_CREATED)


def with_all_texts(cases: QuerySet[UseCase]) -> QuerySet[UseCase]:
    texts = Prefetch("current__texts", UseCaseText.objects.order_by("language"))
    return cases.select_related("current", "tenant").prefetch_related(texts)


def describe(case: UseCase, version: UseCaseVersion | None) -> dict[str, Any]:
    """Return the case as the API shows it, with the texts of this version."""
    assert version is not None, "each case has a version"
    case.shown = version  # type: ignore[attr-defined]
    case.shown_texts = [describe_text(text) for text in version.texts.all()]  # type: ignore[attr-defined]
    return dict(shapes.UseCase(case).data)


def describe_text(text: UseCaseText) -> dict[str, Any]:
    fields = {name: getattr(text, name) for name in shapes.TEXTS}
    return {"language": text.language, **fields, "variables": text.variables}
