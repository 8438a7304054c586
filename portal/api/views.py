"""What belongs to the API as a whole: its description, the page that shows it, and unknown addresses."""

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views.decorators.gzip import gzip_page
from django.views.decorators.http import require_safe
from drf_spectacular.renderers import (
    OpenApiJsonRenderer,
    OpenApiJsonRenderer2,
    OpenApiYamlRenderer,
    OpenApiYamlRenderer2,
)
from drf_spectacular.views import SpectacularAPIView
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.views import APIView

from portal.accounts.api_permissions import SignedIn
from portal.web.addresses import base_address
from portal.web.rest import openapi


# Hundreds of kilobytes of words, which become a tenth. There is no secret in them that a length could betray.
@method_decorator(gzip_page, name="dispatch")
class Schema(SpectacularAPIView):
    """The description of the API (OpenAPI 3), as far as the caller may use it."""

    permission_classes = [SignedIn]
    generator_class = openapi.DescriptionGenerator
    # JSON if nothing else is asked for: YAML takes a second to write.
    renderer_classes = [OpenApiJsonRenderer, OpenApiJsonRenderer2, OpenApiYamlRenderer, OpenApiYamlRenderer2]
    subject = ""


class UnknownAddress(APIView):
    """Every other address, which gets an error of the API instead of a page."""

    schema = None
    permission_classes = [SignedIn]
    subject = ""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        raise NotFound


@login_required
@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """Show the description to read and try, without loading anything from the internet."""
    return render(request, "api/docs.html", {"address": base_address(request)})
