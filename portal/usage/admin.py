"""Usage records in Django's admin, for reading only."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from portal.usage.models import UsageRecord, UsageTenantDay
from portal.web.pagination import NewestOnly


class ByModel(admin.SimpleListFilter):
    """Filters by model. Its names come from the sums: to find them in millions of records takes seconds."""

    title = _("model")
    parameter_name = "model"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        names = UsageTenantDay.objects.order_by("model").values_list("model", flat=True).distinct()
        return [(name, name) for name in names]

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        return queryset.filter(model=self.value()) if self.value() else queryset


@admin.register(UsageRecord)
class UsageRecordAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = [
        "request_id", "started_at", "tenant_number", "user_number", "key_number", "model", "endpoint",
        "prompt_tokens", "completion_tokens", "estimated", "status", "duration_ms",
    ]  # fmt: skip
    # No date_hierarchy: to find the days it reads all records, which took 10 s for a million.
    list_filter = ["started_at", "status", "estimated", ByModel]
    search_fields = ["=request_id"]
    paginator = NewestOnly
    show_full_result_count = False
    ordering = ["-started_at"]

    # Numbers, as what they refer to may be deleted. Columns named `tenant_id` would have an English head.
    @admin.display(description=_("tenant"), ordering="tenant_id")
    def tenant_number(self, record: UsageRecord) -> int:
        return record.tenant_id

    @admin.display(description=_("user"), ordering="user_id")
    def user_number(self, record: UsageRecord) -> int | None:
        return record.user_id

    @admin.display(description=_("API key"), ordering="key_id")
    def key_number(self, record: UsageRecord) -> int:
        return record.key_id

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: UsageRecord | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: UsageRecord | None = None) -> bool:
        return False
