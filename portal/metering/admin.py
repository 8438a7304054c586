"""Quotas can be set here; usage can be looked at. Nothing that was used can be changed by hand."""

from django.contrib import admin
from django.http import HttpRequest

from portal.metering.models import Quota, UsageRecord


@admin.register(Quota)
class QuotaAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["__str__", "tenant", "user", "key", "model", "unit", "window", "amount"]
    list_filter = ["unit", "window", "tenant"]
    list_select_related = ["tenant", "user", "key", "model"]
    autocomplete_fields = ["key"]
    search_fields = ["tenant__slug", "tenant__name", "user__username", "key__prefix"]


@admin.register(UsageRecord)
class UsageRecordAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = [
        "request_id", "started_at", "tenant_id", "user_id", "key_id", "model", "endpoint",
        "prompt_tokens", "completion_tokens", "estimated", "status", "duration_ms",
    ]  # fmt: skip
    list_filter = ["status", "estimated", "model"]
    search_fields = ["=request_id"]
    date_hierarchy = "started_at"
    # A table of millions is not counted for the sake of a page number.
    show_full_result_count = False
    ordering = ["-started_at"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: UsageRecord | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: UsageRecord | None = None) -> bool:
        return False
