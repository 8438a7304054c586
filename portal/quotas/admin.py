"""Quotas can be set here; usage can be looked at. Nothing that was used can be changed by hand."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from portal.quotas import administration
from portal.quotas.models import Quota


@admin.register(Quota)
class QuotaAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["__str__", "tenant", "user", "key", "model", "unit", "window", "amount"]
    list_filter = ["unit", "window", "tenant"]
    list_select_related = ["tenant", "user", "key", "model"]
    autocomplete_fields = ["key"]
    search_fields = ["tenant__slug", "tenant__name", "user__username", "key__prefix"]

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """Name why a quota cannot be removed where Django names what protects a row."""
        found, counts, lacking, protected = super().get_deleted_objects(objs, request)
        return found, counts, lacking, [*protected, *find_obstacles(objs)]

    def delete_model(self, request: HttpRequest, obj: Quota) -> None:
        administration.delete_quota(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Quota]) -> None:
        for quota in queryset:
            administration.delete_quota(quota)


def find_obstacles(quotas: Any) -> list[str]:
    """Return why these quotas cannot be removed, a sentence for each that cannot."""
    found = []
    for quota in quotas:
        try:
            administration.check_removal(quota)
        except administration.QuotaRefused as refusal:
            found.append(f"{quota}: {refusal.sentence}")
    return found
