"""The status of models in the API, as its page shows it."""

from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from portal.accounts.api_permissions import SignedIn
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.status import availability
from portal.status import serializers as shapes


class StatusView(APIView):
    subject = "news"
    permission_classes = [SignedIn]

    @extend_schema(operation_id="status", summary=_("How models are and were"), responses={200: shapes.Status})
    def get(self, request: Request) -> Response:
        """Return the models that you may call, their last 30 days, and when they did not answer; operators get all."""
        user, now = current_user(request), timezone.now()
        offers = availability.visible_offers(user)
        incidents = availability.read_incidents([offer.name for offer in offers], now)
        found = {
            "models": availability.read_statuses(offers, zone_of(user), now),
            "incidents": [
                {
                    **{"model": one.model, "reason": one.reason, "began_at": one.began_at, "ended_at": one.ended_at},
                    "seconds": int(one.lasted.total_seconds()),
                }
                for one in incidents
            ],
        }
        return Response(shapes.Status(found).data)
