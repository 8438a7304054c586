"""The page of the status, for every signed-in person."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.keys.model_access import Liveness
from portal.status import availability


@login_required
@require_safe
def status(request: HttpRequest) -> HttpResponse:
    """Show the models that this person may call, all of them for operators: how they are now and were."""
    user, now = current_user(request), timezone.now()
    zone = zone_of(user)
    offers = availability.visible_offers(user)
    context = {
        "zone": zone,
        "statuses": availability.read_statuses(offers, zone, now),
        "incidents": availability.read_incidents([offer.name for offer in offers], now),
        "troubled": [offer for offer in offers if offer.state is Liveness.DOWN],
        "working": sum(offer.state is not Liveness.DOWN and not offer.made_up for offer in offers),
        "samples": any(offer.made_up for offer in offers),
        "real": any(not offer.made_up for offer in offers),
        "days": availability.DAYS,
    }
    return render(request, "status/status.html", context)
