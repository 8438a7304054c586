"""The page for trying models. The browser talks to the gateway: messages never pass through here."""

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_safe

from modelregistry.models import ServedModel
from portal.accounts.models import User
from portal.accounts.permissions import own_tenants
from portal.keys import lifecycle, playground, playground_models
from portal.keys.integrations import dify_fields
from portal.keys.key_example import base_url
from portal.web import posted_forms

FORM_SIZE = 64 * 1024  # bytes of an upload beside its file: the fields before it and the boundaries


@login_required
@never_cache
@require_safe
def try_it(request: HttpRequest) -> HttpResponse:
    """Show the page for trying the models that a person's tenants may use, each for what it can do."""
    assert isinstance(request.user, User)
    tenants = list(own_tenants(request.user))
    url = base_url(request)
    choices = playground_models.model_choices(tenants)
    chosen = request.GET.get("model", "")
    tasks = [{"name": str(task), "choices": choices[task]} for task in ServedModel.Task if task in choices]
    context = {
        "tenants": tenants,
        "tasks": tasks,
        "chosen": chosen,
        "chosen_task": _task_of(choices, chosen),
        "base_url": url,
        "dify": {one.offer.name: dify_fields(one.offer, url, "") for one in choices.get(ServedModel.Task.CHAT, ())},
        "answer": playground_models.ANSWER,
        "most_upload": settings.GATEWAY_MAX_BODY - FORM_SIZE,
        # Japanese if not chosen, as in gateways: a page in the same language can show their messages unchanged.
        "gateway_language": request.user.language or "ja",
    }
    return render(request, "site/try.html", context)


def _task_of(choices: dict[str, list[playground_models.ModelChoice]], name: str) -> str:
    """Return what the model with this name or alias is for; empty for one that is not offered."""
    named = (task for task, found in choices.items() for one in found if name in (one.offer.name, *one.offer.aliases))
    return next(named, "")


@login_required
@never_cache
@posted_forms.only_posted
@sensitive_variables("text")
def try_key(request: HttpRequest, slug: str) -> HttpResponse:
    """Return the key with which the page calls the gateway in the name of the signed-in person."""
    assert isinstance(request.user, User)
    tenant = get_object_or_404(own_tenants(request.user), slug=slug)
    try:
        text, expires_at = playground.renew_key(request.user, tenant, timezone.now())
    except lifecycle.NotAMember as error:
        raise Http404 from error
    return JsonResponse({"key": text, "expires_at": expires_at})
