from types import ModuleType
from typing import Any

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ModelRegistryConfig(AppConfig):
    name = "modelregistry"
    verbose_name = _("Models and hosts")

    def __init__(self, app_name: str, app_module: ModuleType | None) -> None:
        super().__init__(app_name, app_module)
        self.periodic_tasks: dict[str, Any] = {}  # by name; filled by `tasks.register`, whichever app is ready first
