"""Django's admin of hosts and models. Replicas are read-only: their supervisor writes them."""

from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from modelregistry import hosts
from modelregistry.admin_deletion import WithRelatedRows
from modelregistry.models import Alias, Host, Replica, ServedModel
from modelregistry.process import process

LOG_LINES = 200


@admin.register(Host)
class HostAdmin(WithRelatedRows):
    list_display = ("name", "address", "maintenance", "seen_at")
    readonly_fields = ("seen_at", "removal")
    search_fields = ("name",)

    def get_readonly_fields(self, request: HttpRequest, obj: Host | None = None) -> tuple[str, ...]:
        """Return them without `removal` for a host that is being added."""
        return self.readonly_fields if obj else ("seen_at",)

    def save_model(self, request: HttpRequest, obj: Host, form: forms.ModelForm, change: bool) -> None:  # type: ignore[type-arg]
        # Not the other fields, which its supervisor may have written since they were read.
        obj.save(update_fields=form.changed_data if change else None)

    def has_delete_permission(self, request: HttpRequest, obj: Host | None = None) -> bool:
        """Return whether the host may be removed, as `hosts.remove_host` decides."""
        return obj is not None and super().has_delete_permission(request, obj) and not hosts.find_removal_obstacle(obj)

    @admin.display(description=_("deletion"))
    def removal(self, host: Host) -> SafeString | str:
        """Return why there is no button to delete the host, or that there is one."""
        obstacle = hosts.find_removal_obstacle(host)
        if not obstacle:
            return gettext("Possible: nothing needs this host.")
        return format_html('<span id="removal-obstacle">{}</span>', obstacle)


class ReplicaInline(admin.TabularInline):  # type: ignore[type-arg]  # generic in its stubs only
    model = Replica
    fields = ("index", "host", "state", "launcher", "url", "pid", "memory_bytes", "restarts", "changed_at")
    readonly_fields = fields
    extra = 0
    can_delete = False
    show_change_link = True

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


class ServedModelAdminForm(forms.ModelForm):  # type: ignore[type-arg]  # generic in its stubs only
    """A form that never sends a stored key to a browser again."""

    upstream_key = forms.CharField(
        label=_("key of the external engine"),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        required=False,
        help_text=_("Never shown. Empty: stays as it is."),
    )

    def clean_upstream_key(self) -> str:
        entered: str = self.cleaned_data["upstream_key"]
        return entered or self.instance.upstream_key

    def clean_sampling(self) -> Any:
        entered = self.cleaned_data["sampling"]
        return {} if entered is None else entered  # an empty field sets nothing


@admin.register(ServedModel)
class ServedModelAdmin(WithRelatedRows):
    form = ServedModelAdminForm
    list_display = ("name", "engine", "task", "host", "replicas", "context", "slots", "idle_after", "enabled")
    list_filter = ("engine", "task", "enabled", "host")
    search_fields = ("name", "description_ja", "description_en", "path", "url")
    inlines = (ReplicaInline,)
    fieldsets: ClassVar = (
        (None, {"fields": ("name", "description_ja", "description_en", "task", "enabled", "retires_on")}),
        (_("Catalogue"), {"fields": ("declared_capabilities", "licence")}),
        (_("Engine"), {"fields": ("engine", "launcher", "engine_version", "path", "host", "args", "allowed_risks")}),
        (_("Size"), {"fields": ("replicas", "replicas_max", "context", "slots", "idle_after", "hours", "sleep_mode")}),
        (_("Memory"), {"fields": ("gpus", "tensor_parallel", "nodes", "overcommit")}),
        (
            _("Time-outs"),
            {"fields": ("connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout")},
        ),
        (_("Word loops and sampling"), {"fields": ("loops", "loop_sensitivity", "sampling")}),
        (_("External engine"), {"fields": ("url", "upstream_model", "upstream_key")}),
    )


@admin.register(Alias)
class AliasAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # generic in its stubs only
    """Aliases; one that is given another model leads there at once."""

    list_display = ("name", "model")
    list_select_related = ("model",)
    search_fields = ("name", "model__name")


@admin.register(Replica)
class ReplicaAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # generic in its stubs only
    list_display = ("model", "index", "host", "state", "launcher", "memory", "restarts", "changed_at")
    list_filter = ("state", "host", "model")
    list_select_related = ("model", "host")
    fields: ClassVar = (
        *("model", "index", "host", "state", "changed_at", "launcher", "slots", "url", "pid", "memory"),
        *("restarts", "retry_at", "detail", "log"),
    )
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Replica | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Replica | None = None) -> bool:
        return False

    @admin.display(description=_("memory"), ordering="memory_bytes")
    def memory(self, replica: Replica) -> str:
        return f"{replica.memory_bytes / 1e9:.1f} GB" if replica.memory_bytes else "-"

    @admin.display(description=_("log"))
    def log(self, replica: Replica) -> SafeString | str:
        """Return the end of the engine's log, if it runs on the machine that serves this page."""
        if replica.host.name != settings.HOST_NAME:
            return _("On host %(host)s.") % {"host": replica.host}
        directory = settings.RUN / "engines" / replica.run_id
        text = process.log_tail(directory, LOG_LINES) if replica.run_id else ""
        return format_html("<pre>{}</pre>", text) if text else "-"
