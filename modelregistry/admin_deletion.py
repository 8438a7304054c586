"""Deletion in Django's admin: what holds a row is named, not a permission that no one could give."""

from typing import Any

from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_permission_codename
from django.db import models
from django.http import HttpRequest


class WithRelatedRows(admin.ModelAdmin):  # type: ignore[type-arg]  # generic in its stubs only
    """Deletes a row with those that belong to it, also where the admin offers no deletion of these by themselves.

    Django would say that the person lacks the permission to delete such rows, replicas of a model for example, and say
    it before it names what protects the row: API keys of a tenant.
    """

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        found, counts, lacking, protected = super().get_deleted_objects(objs, request)
        return found, counts, lacking & self._find_forbidden(request), protected

    def _find_forbidden(self, request: HttpRequest) -> set[str]:
        """Return what the person may not delete at all, as Django calls it."""
        kinds = [one for one in apps.get_models() if self.admin_site.is_registered(one)]
        return {str(one._meta.verbose_name) for one in kinds if not _may_delete(request, one)}


def _may_delete(request: HttpRequest, kind: type[models.Model]) -> bool:
    options = kind._meta
    return request.user.has_perm(f"{options.app_label}.{get_permission_codename('delete', options)}")
