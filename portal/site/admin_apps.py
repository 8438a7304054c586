from django.contrib.admin.apps import AdminConfig


class Administration(AdminConfig):
    default_site = "portal.site.admin_site.Site"
