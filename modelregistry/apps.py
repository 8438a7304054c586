from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ModelRegistryConfig(AppConfig):
    name = "modelregistry"
    verbose_name = _("Models and hosts")
