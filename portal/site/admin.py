"""Titles of Django's admin, and what it does not show."""

from django.contrib import admin
from django.contrib.auth.models import Group
from django.utils.translation import gettext_lazy as _

admin.site.site_header = admin.site.site_title = _("Madoguchi")
admin.site.index_title = _("For operators")
# Memberships and the operator flag decide permissions; a list of groups would suggest otherwise.
admin.site.unregister(Group)
