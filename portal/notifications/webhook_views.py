"""The operators' pages of webhooks."""

from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.decorators import operator_required
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.notifications import posting, webhooks
from portal.notifications.models import Webhook
from portal.web import posted_forms
from portal.web.editions import EditionForm, locked_if_posted


class WebhookForm(EditionForm, forms.ModelForm):  # type: ignore[type-arg]  # generic in its stubs only
    """A webhook. Its address is never shown again: empty keeps the known one."""

    url = forms.CharField(
        label=gettext_lazy("Address"),
        max_length=1000,
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "off", "inputmode": "url"}),
        help_text=gettext_lazy("As Teams or Slack gave it. Who knows it can post, so it is not shown again."),
    )
    kinds = forms.MultipleChoiceField(
        label=gettext_lazy("Notices"),
        choices=[*webhooks.OPERATOR_KINDS.items()],
        initial=[*webhooks.OPERATOR_KINDS],
        widget=forms.CheckboxSelectMultiple,
    )

    class Meta:
        model = Webhook
        fields = ("name", "style", "url", "language", "kinds", "is_active")
        widgets = {"style": forms.RadioSelect, "language": forms.RadioSelect}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk is None:
            self.fields["url"].required = True
            self.initial["kinds"] = [*webhooks.OPERATOR_KINDS]
        else:
            self.fields["url"].help_text = _("Leave this empty to keep the address, which is not shown again.")

    def clean_url(self) -> str:
        url: str = self.cleaned_data["url"].strip()
        if not url and self.instance.pk:
            return str(Webhook.objects.values_list("url", flat=True).get(pk=self.instance.pk))
        posting.check_url(url)
        return url


@operator_required
@require_safe
def webhook_list(request: HttpRequest) -> HttpResponse:
    rows = [(row, webhooks.shorten_url(row.url)) for row in Webhook.objects.all()[: webhooks.MOST_WEBHOOKS]]
    return render(request, "notifications/webhooks.html", {"rows": rows, "zone": zone_of(current_user(request))})


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def new_webhook(request: HttpRequest) -> HttpResponse:
    return _edit(request, None)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_webhook(request: HttpRequest, pk: int) -> HttpResponse:
    return _edit(request, pk)


@operator_required
@posted_forms.only_posted
def test_webhook(request: HttpRequest, pk: int) -> HttpResponse:
    """Post a test now and show what came of it. The page waits for `webhooks.PATIENCE` at most."""
    webhook = get_object_or_404(Webhook, pk=pk)
    delivery = webhooks.send_test(webhook, timezone.now())
    if delivery is None:
        sentence = _("There is no answer yet. Reload this page in a few seconds: the list shows what comes of it.")
        messages.warning(request, sentence, extra_tags="webhook-waits")
    elif delivery.fault:
        messages.error(request, _("The test message did not arrive. The list says why."), extra_tags="webhook-failed")
    else:
        messages.success(request, _("The test message was accepted."), extra_tags="webhook-sent")
    return redirect("webhooks")


@operator_required
@posted_forms.only_posted
def remove_webhook(request: HttpRequest, pk: int) -> HttpResponse:
    get_object_or_404(Webhook, pk=pk).delete()
    messages.success(request, _("The webhook was deleted."))
    return redirect("webhooks")


def _edit(request: HttpRequest, pk: int | None) -> HttpResponse:
    with locked_if_posted(request, webhooks.lock_webhooks):
        row = get_object_or_404(Webhook, pk=pk) if pk else Webhook()
        form = WebhookForm(posted_forms.posted_data(request), instance=row, initial={"url": ""})
        if form.is_valid():
            try:
                webhooks.save_webhook(form.save(commit=False))
            except webhooks.TooManyWebhooks as refusal:
                form.add_error(None, ValidationError(refusal.sentence, code="too-many"))
            else:
                messages.success(request, _("Saved."))
                return redirect("webhooks")
    return posted_forms.render_form(request, "notifications/webhook.html", form, {"pk": pk})
