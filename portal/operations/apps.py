from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class OperationsConfig(AppConfig):
    name = "portal.operations"
    verbose_name = _("Operations")

    def ready(self) -> None:
        from django.db.models.signals import post_save

        from modelregistry.models import Alias, EngineTrial, Host, ServedModel
        from portal.accounts import audit
        from portal.keys.models import ModelAccess
        from portal.operations.actions import verb_of
        from portal.operations.versions import tell_of_failed

        post_save.connect(tell_of_failed, sender=EngineTrial, dispatch_uid="operations-versions")
        audit.watch(ServedModel, "model", secret={"upstream_key"}, verb=verb_of)
        audit.watch(Alias, "alias")
        audit.watch(Host, "host", silent={"seen_at"})
        audit.watch(ModelAccess, "access", tenant=lambda access: access.tenant)
