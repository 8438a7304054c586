from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class GuideConfig(AppConfig):
    name = "portal.guide"
    verbose_name = _("Getting started")

    def ready(self) -> None:
        from portal.audit import tracking
        from portal.guide.models import HouseRules

        tracking.track(HouseRules, "house-rules", ignored={"edition", "changed_at"}, name=lambda rules: "house rules")
