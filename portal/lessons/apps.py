from datetime import timedelta
from typing import Any

from django.apps import AppConfig
from django.contrib.auth.signals import user_logged_in
from django.db.models.signals import post_save
from django.utils.translation import gettext_lazy as _


class LessonsConfig(AppConfig):
    name = "portal.lessons"
    verbose_name = _("Courses and seminars")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks
        from portal.audit import tracking
        from portal.keys.signals import (
            key_replaced,
            key_replacement_requested,
            key_requested,
            playground_key_renewed,
        )
        from portal.lessons.guests import (
            check_removal,
            follow_default,
            keep_changed_limit,
            limit_guest_again,
            limit_playground_key,
        )
        from portal.lessons.models import Seminar
        from portal.lessons.seminars import check_replacement, check_request, follow_key
        from portal.quotas.models import Quota
        from portal.quotas.signals import quota_removal_requested, quota_removed
        from portal.use_cases.signals import use_case_tried

        use_case_tried.connect(note_tried, dispatch_uid="lessons")
        user_logged_in.connect(note_sign_in, dispatch_uid="lessons")
        key_requested.connect(check_request, dispatch_uid="lessons")
        key_replacement_requested.connect(check_replacement, dispatch_uid="lessons")
        key_replaced.connect(follow_key, dispatch_uid="lessons")
        playground_key_renewed.connect(limit_playground_key, dispatch_uid="lessons")
        post_save.connect(keep_changed_limit, Quota, dispatch_uid="lessons")
        post_save.connect(follow_default, Quota, dispatch_uid="lessons-default")
        quota_removal_requested.connect(check_removal, dispatch_uid="lessons")
        quota_removed.connect(limit_guest_again, dispatch_uid="lessons")
        tracking.track(
            Seminar,
            "seminar",
            ignored={"nonce", "code_digest", "opened_by"},
            tenant=lambda seminar: seminar.tenant,
            name=lambda seminar: seminar.title or seminar.course,
            verb=lambda before, after: "over" if "ended_at" in after else "change",
        )
        tasks.register("endseminars", timedelta(minutes=5), ("endseminars",))
        tasks.register("recordsteps", timedelta(days=1), ("recordsteps",))


def note_sign_in(user: Any, **_: Any) -> None:
    """Note the step of signing in."""
    from portal.lessons.progress import note_step

    note_step(user, "signed-in")


def note_tried(user: Any, **_: Any) -> None:
    """Note the step of trying a use case, not which one."""
    from portal.lessons.progress import note_step

    note_step(user, "use-case")
