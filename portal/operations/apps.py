from datetime import timedelta

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class OperationsConfig(AppConfig):
    name = "portal.operations"
    verbose_name = _("Operations")

    def ready(self) -> None:
        from django.db.models.signals import post_save

        from modelregistry.controller.loads import loads_wanted
        from modelregistry.controller.watching import hosts_watched
        from modelregistry.models import Alias, EngineTrial, Host, ServedModel
        from modelregistry.supervisor import tasks
        from portal.audit import tracking
        from portal.keys.models import ModelAccess
        from portal.operations import booking_notices, machine_notices
        from portal.operations.actions import choose_audit_verb
        from portal.operations.figure_history import FigureRecorder
        from portal.operations.host_notices import look
        from portal.operations.model_loads import read_model_loads
        from portal.operations.versions import notify_failed_version

        post_save.connect(notify_failed_version, sender=EngineTrial, dispatch_uid="operations-versions")
        loads_wanted.connect(read_model_loads, dispatch_uid="operations-loads")
        hosts_watched.connect(look, dispatch_uid="operations-hosts")
        hosts_watched.connect(booking_notices.look, dispatch_uid="operations-bookings")
        hosts_watched.connect(machine_notices.look, dispatch_uid="operations-machines")
        # Last: others are notified of what they see even if this fails.
        hosts_watched.connect(FigureRecorder().look, weak=False, dispatch_uid="operations-history")
        tasks.register("prunehistory", timedelta(hours=1), ("prunehistory",))
        tracking.track(ServedModel, "model", secret={"upstream_key"}, verb=choose_audit_verb)
        tracking.track(Alias, "alias")
        tracking.track(Host, "host", ignored={"seen_at", "watched_at", "silent_since", "agent"})
        tracking.track(ModelAccess, "access", tenant=lambda access: access.tenant)
