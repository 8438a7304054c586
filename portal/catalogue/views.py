"""The catalogue of models: all of them, two or three side by side, and a page for each."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from modelregistry.models import Alias
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.catalogue.entries import read_entries
from portal.catalogue.filters import CatalogueFilter
from portal.catalogue.speeds import read_charts
from portal.keys.code_samples import make_samples
from portal.keys.key_example import base_url
from portal.keys.model_access import offered_to
from portal.status.availability import read_statuses

MOST_COMPARED = 3  # columns that fit beside each other, and that people can weigh


@login_required
@require_safe
def show_catalogue(request: HttpRequest) -> HttpResponse:
    """List the models that this person may call; all of them for operators."""
    user = current_user(request)
    entries = read_entries(offered_to(user), timezone.now(), zone_of(user))
    wanted = CatalogueFilter(request.GET)
    context = {
        "entries": wanted.select(entries),
        "total": len(entries),
        "filter": wanted,
        "base_url": base_url(request),
        "most_compared": MOST_COMPARED,
    }
    return render(request, "catalogue/list.html", context)


@login_required
@require_safe
def compare(request: HttpRequest) -> HttpResponse:
    """Show up to three models side by side (?model=, several times). Names of others are as if they were not there."""
    user = current_user(request)
    names = list(dict.fromkeys(request.GET.getlist("model")))
    found = {entry.name: entry for entry in read_entries(offered_to(user), timezone.now(), zone_of(user))}
    chosen = [found[name] for name in names if name in found]
    context = {
        "entries": chosen[:MOST_COMPARED],
        "left_out": chosen[MOST_COMPARED:],
        "most_compared": MOST_COMPARED,
        "others": [entry for name, entry in sorted(found.items()) if entry not in chosen],
    }
    return render(request, "catalogue/compare.html", context)


@login_required
@require_safe
def show_model(request: HttpRequest, name: str) -> HttpResponse:
    """Show one model and how to call it. Another name of it leads here.

    A model that this person may not call is as one that does not exist, but for the people to ask, who are named for
    both: names of other tenants' models may say what these work on.
    """
    user, now = current_user(request), timezone.now()
    zone = zone_of(user)
    offered = offered_to(user)
    entries = read_entries(offered.filter(name=name), now, zone)
    if not entries:
        alias = Alias.objects.filter(name=name, model__in=offered).select_related("model").first()
        if alias is not None:
            return redirect("model", alias.model.name)
        return render(request, "catalogue/unknown.html", {"name": name}, status=404)
    [entry] = entries
    url = base_url(request)
    [status] = read_statuses([entry.offer], zone, now)
    charts = read_charts(
        name, now, zone, first_token=_("half of the answers began within"), rate=_("speed of an answer")
    )
    context = {
        "zone": zone,
        "entry": entry,
        "offer": entry.offer,
        "base_url": url,
        "samples": make_samples(entry.offer, base_url=url),
        "charts": charts,
        "status": status,
    }
    return render(request, "catalogue/model.html", context)
