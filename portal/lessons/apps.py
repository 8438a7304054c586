from datetime import timedelta
from typing import Any

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class LessonsConfig(AppConfig):
    name = "portal.lessons"
    verbose_name = _("Courses and seminars")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks
        from portal.keys.signals import key_replaced
        from portal.lessons.seminars import follow_key
        from portal.use_cases.signals import use_case_opened

        use_case_opened.connect(note_opened, dispatch_uid="lessons")
        key_replaced.connect(follow_key, dispatch_uid="lessons")
        tasks.register("endseminars", timedelta(minutes=5), ("endseminars",))


def note_opened(user: Any, **_: Any) -> None:
    """Note the step of opening a use case, not which one."""
    from portal.lessons.progress import note_step

    note_step(user, "use-case")
