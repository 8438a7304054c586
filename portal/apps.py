from django.contrib.admin.apps import AdminConfig


class Administration(AdminConfig):
    default_site = "portal.console.admin_site.Site"
