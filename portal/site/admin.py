"""The frame of Django's admin."""

from django.contrib import admin
from django.contrib.auth.models import Group
from django.utils.translation import gettext_lazy as _

admin.site.site_header = admin.site.site_title = _("Madoguchi")
admin.site.index_title = _("For operators")
# Who may do what follows from memberships and from being an operator; a list of groups would promise more.
admin.site.unregister(Group)
