"""Quotas can be set here; usage can be looked at. Nothing that was used can be changed by hand."""

from django.contrib import admin

from portal.quotas.models import Quota


@admin.register(Quota)
class QuotaAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["__str__", "tenant", "user", "key", "model", "unit", "window", "amount"]
    list_filter = ["unit", "window", "tenant"]
    list_select_related = ["tenant", "user", "key", "model"]
    autocomplete_fields = ["key"]
    search_fields = ["tenant__slug", "tenant__name", "user__username", "key__prefix"]
