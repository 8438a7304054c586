"""The operators' page of the queue."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from portal.accounts.decorators import operator_required
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.operations.queue import GONE_AFTER, QueueReader


@operator_required
@require_safe
def show_queue(request: HttpRequest) -> HttpResponse:
    now, model = timezone.now(), request.GET.get("model", "")
    queue = QueueReader()(now, model)
    context = {
        "zone": zone_of(current_user(request)),
        "now": now,
        "queue": queue,
        "model": model,  # the only one whose calls are listed
        "of_these": queue.waiting_for(model),
        "gone_after": GONE_AFTER,
    }
    return render(request, "operations/queue.html", context)
