from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class OperationsConfig(AppConfig):
    name = "portal.operations"
    verbose_name = _("Operations")

    def ready(self) -> None:
        from django.db.models.signals import post_save

        from modelregistry.models import Alias, EngineTrial, Host, ServedModel
        from portal.audit import tracking
        from portal.keys.models import ModelAccess
        from portal.operations.actions import choose_audit_verb
        from portal.operations.versions import notify_failed_version

        post_save.connect(notify_failed_version, sender=EngineTrial, dispatch_uid="operations-versions")
        tracking.track(ServedModel, "model", secret={"upstream_key"}, verb=choose_audit_verb)
        tracking.track(Alias, "alias")
        tracking.track(Host, "host", ignored={"seen_at"})
        tracking.track(ModelAccess, "access", tenant=lambda access: access.tenant)
