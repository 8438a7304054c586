from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class NewsConfig(AppConfig):
    name = "portal.news"
    verbose_name = _("News")

    def ready(self) -> None:
        from portal.audit import tracking
        from portal.news.models import Announcement

        tracking.track(
            Announcement,
            "announcement",
            ignored={"shown_from", "created_at"},
            name=lambda announcement: announcement.title_ja or announcement.title_en,
        )
