"""People and tenants for operators."""

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.utils.translation import gettext_lazy as _

from modelregistry.admin_deletion import WithRelatedRows
from portal.accounts.models import Membership, Tenant, User


class MembershipInline(admin.TabularInline):  # type: ignore[type-arg]
    model = Membership
    extra = 0
    autocomplete_fields = ["tenant"]


@admin.register(Tenant)
class TenantAdmin(WithRelatedRows):
    list_display = ["slug", "name", "time_zone", "is_active"]
    list_filter = ["is_active"]
    search_fields = ["slug", "name"]


@admin.register(User)
class PersonAdmin(WithRelatedRows, UserAdmin):  # type: ignore[type-arg]
    list_display = ["username", "last_name", "first_name", "email", "is_staff", "is_active", "left_directory_at"]
    list_filter = ["is_staff", "is_active", ("directory_id", admin.EmptyFieldListFilter), "tenants"]
    readonly_fields = ["last_login", "date_joined", "left_directory_at", "is_break_glass"]
    # Django's own groups and permissions are not used: is_staff and memberships say who may do what.
    filter_horizontal = ()
    fieldsets = [
        (None, {"fields": ["username", "password"]}),
        (_("Personal info"), {"fields": ["first_name", "last_name", "email", "language"]}),
        (_("Permissions"), {"fields": ["is_active", "is_staff", "is_superuser", "is_break_glass"]}),
        (_("directory"), {"fields": ["directory_id", "left_directory_at"]}),
        (_("Important dates"), {"fields": ["last_login", "date_joined"]}),
    ]
    inlines = [MembershipInline]


@admin.register(Membership)
class MembershipAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["user", "tenant", "role", "source"]
    list_filter = ["tenant", "role", "source"]
    list_select_related = ["user", "tenant"]
    search_fields = ["user__username", "user__last_name", "tenant__slug"]
    autocomplete_fields = ["user", "tenant"]
