"""Keys for operators: look at, rename, restrict and revoke them. Pages that can show their texts issue them."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from portal.accounts.permissions import current_user
from portal.keys import lifecycle, management_keys, queries
from portal.keys.models import ApiKey, ManagementKey, ModelAccess


@admin.action(description=_("Revoke the selected API keys for good"), permissions=["change"])
def revoke_keys(page: admin.ModelAdmin, request: HttpRequest, keys: QuerySet[ApiKey]) -> None:  # type: ignore[type-arg]
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
    actions = [revoke_keys]
    filter_horizontal = ["allowed_models"]
    autocomplete_fields = ["responsible"]
    fields = [
        "prefix", "name", "purpose", "tenant", "user", "service", "responsible", "key_class", "every_model",
        "allowed_models", "networks", "takes_user_headers", "loop_guard", "expires_at", "state", "revoked_at",
        "revoked_because", "replaces", "last_used_at", "last_used_from", "last_used_with", "created_at", "created_by",
    ]  # fmt: skip
    # The owner of a key cannot change: the person who holds its text stays the same.
    readonly_fields = [
        "prefix", "tenant", "user", "service", "state", "revoked_at", "revoked_because", "replaces",
        "last_used_at", "last_used_from", "last_used_with", "created_at", "created_by",
    ]  # fmt: skip

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[str]:
        """Return the usual fields; for a personal key also `responsible`, which only service keys have.

        Nothing changes of the canary's key.
        """
        if obj and obj.is_canary:
            return [str(name) for name in self.fields]
        fields = list(super().get_readonly_fields(request, obj))
        return [*fields, "responsible"] if obj and obj.user_id else fields

    def formfield_for_choice_field(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "key_class":
            kwargs["choices"] = ApiKey.CHOOSABLE
        return super().formfield_for_choice_field(db_field, request, **kwargs)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Save, and record a change of the key's models: the audit watches rows, and they are not in the key's row."""
        before = lifecycle.models_of(ApiKey.objects.get(pk=form.instance.pk))
        super().save_related(request, form, formsets, change)
        lifecycle.record_models_change(form.instance, before)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiKey]:
        return queries.with_usable(super().get_queryset(request))

    @admin.display(description=_("state"))
    def state(self, key: ApiKey) -> str:
        return str(queries.state_of(key).label)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        # Usage refers to keys for as long as it is kept. Revoke them instead.
        return False


@admin.register(ModelAccess)
class ModelAccessAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["model", "tenant"]
    list_filter = ["tenant", "model"]
    list_select_related = ["model", "tenant"]


@admin.action(description=_("Revoke the selected management keys for good"), permissions=["change"])
def revoke_management_keys(
    page: admin.ModelAdmin,  # type: ignore[type-arg]
    request: HttpRequest,
    keys: QuerySet[ManagementKey],
) -> None:
    for key in keys:
        management_keys.revoke_management_key(current_user(request), key)


@admin.register(ManagementKey)
class ManagementKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Management keys to look at and to revoke: their owners chose for good what they may do."""

    list_display = ["prefix", "name", "user", "created_at", "last_used_at", "expires_at", "revoked_at"]
    list_filter = [("revoked_at", admin.EmptyFieldListFilter)]
    list_select_related = ["user"]
    search_fields = ["prefix", "name", "user__username"]
    actions = [revoke_management_keys]
    fields = ["prefix", "name", "user", "scopes", "created_at", "last_used_at", "expires_at", "revoked_at"]
    readonly_fields = ["prefix", "name", "user", "scopes", "created_at", "last_used_at", "expires_at", "revoked_at"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ManagementKey | None = None) -> bool:
        return False
