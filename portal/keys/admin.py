"""Keys for operators: to look at, rename, restrict and revoke. A key is issued where it can be shown: not here."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from portal.accounts.permissions import current_user
from portal.keys import lifecycle, management_keys, queries
from portal.keys.models import ApiKey, ManagementKey, ModelAccess


@admin.action(description=_("Revoke the chosen API keys for good"), permissions=["change"])
def revoke(page: admin.ModelAdmin, request: HttpRequest, keys: QuerySet[ApiKey]) -> None:  # type: ignore[type-arg]
    alive = [key for key in keys if key.revoked_at is None]
    for key in alive:
        lifecycle.revoke_key(key, by=current_user(request))
        page.log_change(request, key, "revoked")
    text = ngettext("%(count)s API key revoked.", "%(count)s API keys revoked.", len(alive))
    page.message_user(request, text % {"count": len(alive)}, messages.SUCCESS)


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["prefix", "name", "tenant", "user", "service", "state", "last_used_at", "expires_at"]
    list_filter = ["tenant", "key_class", ("revoked_at", admin.EmptyFieldListFilter), "is_playground"]
    list_select_related = ["tenant", "user"]
    search_fields = ["prefix", "name", "purpose", "service", "user__username", "responsible__username"]
    actions = [revoke]
    filter_horizontal = ["allowed_models"]
    autocomplete_fields = ["responsible"]
    fields = [
        "prefix", "name", "purpose", "tenant", "user", "service", "responsible", "key_class", "every_model",
        "allowed_models", "networks", "takes_user_headers", "expires_at", "state", "revoked_at", "revoked_because",
        "replaces", "last_used_at", "last_used_from", "last_used_with", "created_at", "created_by",
    ]  # fmt: skip
    # Whose key it is cannot change: the person who holds its text stays the same.
    readonly_fields = [
        "prefix", "tenant", "user", "service", "state", "revoked_at", "revoked_because", "replaces",
        "last_used_at", "last_used_from", "last_used_with", "created_at", "created_by",
    ]  # fmt: skip

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[str]:
        """Nobody is responsible for a personal key but the person."""
        fields = list(super().get_readonly_fields(request, obj))
        return [*fields, "responsible"] if obj and obj.user_id else fields

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """The audit watches rows, and the models of a key are none of its row."""
        before = lifecycle.models_of(ApiKey.objects.get(pk=form.instance.pk))
        super().save_related(request, form, formsets, change)
        lifecycle.notify_gateways(form.instance, before)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiKey]:
        return queries.with_usable(super().get_queryset(request))

    @admin.display(description=_("state"))
    def state(self, key: ApiKey) -> str:
        return str(queries.state_of(key).label)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        # Usage refers to keys for as long as it is kept. Revoking ends one.
        return False


@admin.register(ModelAccess)
class ModelAccessAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["model", "tenant"]
    list_filter = ["tenant", "model"]
    list_select_related = ["model", "tenant"]


@admin.action(description=_("Revoke the chosen management keys for good"), permissions=["change"])
def revoke_management(
    page: admin.ModelAdmin,  # type: ignore[type-arg]
    request: HttpRequest,
    keys: QuerySet[ManagementKey],
) -> None:
    for key in keys:
        management_keys.revoke_management_key(current_user(request), key)


@admin.register(ManagementKey)
class ManagementKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """To look at and to revoke: what a key may do, its owner chose for good."""

    list_display = ["prefix", "name", "user", "created_at", "last_used_at", "expires_at", "revoked_at"]
    list_filter = [("revoked_at", admin.EmptyFieldListFilter)]
    list_select_related = ["user"]
    search_fields = ["prefix", "name", "user__username"]
    actions = [revoke_management]
    fields = ["prefix", "name", "user", "scopes", "created_at", "last_used_at", "expires_at", "revoked_at"]
    readonly_fields = ["prefix", "name", "user", "scopes", "created_at", "last_used_at", "expires_at", "revoked_at"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ManagementKey | None = None) -> bool:
        return False
