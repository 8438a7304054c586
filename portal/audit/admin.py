from django.contrib import admin
from django.http import HttpRequest

from portal.audit.models import AuditEvent
from portal.web.pagination import NewestOnly


@admin.register(AuditEvent)
class AuditEventAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["at", "actor_name", "action", "object_name", "tenant", "via", "address"]
    list_filter = ["at", "via"]
    list_select_related = ["tenant"]
    search_fields = ["actor_name", "object_name", "=action"]
    paginator = NewestOnly
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: AuditEvent | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: AuditEvent | None = None) -> bool:
        return False
