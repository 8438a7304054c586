"""What a person needs on the first day: the company's rules, and who has seen the page."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from portal.web.markdown import MAX_LENGTH


class HouseRules(models.Model):
    """The company's rules for the use of models and a contact, as Markdown. One row, none until operators write it.

    The audit log has the history.
    """

    rules_ja = models.TextField(_("rules in Japanese"), blank=True, max_length=MAX_LENGTH)
    rules_en = models.TextField(_("rules in English"), blank=True, max_length=MAX_LENGTH)
    contact_ja = models.TextField(_("contact in Japanese"), blank=True, max_length=1000)
    contact_en = models.TextField(_("contact in English"), blank=True, max_length=1000)
    edition = models.PositiveIntegerField(default=0, editable=False)  # counts changes, so that no two overwrite another
    changed_at = models.DateTimeField(_("changed"), auto_now=True)

    class Meta:
        verbose_name = _("house rules")
        verbose_name_plural = _("house rules")

    def __str__(self) -> str:
        return f"edition {self.edition}"


class FirstDayDone(models.Model):
    """That a person does not want the page for the first day at sign-in any more, though no model answered them yet."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True, related_name="+")
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.user_id} {self.at}"
