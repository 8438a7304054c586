from django.contrib.auth.views import LogoutView
from django.urls import path

from portal.accounts import audit_views
from portal.accounts.views import SignIn, settings_page
from portal.console import posted

urlpatterns = [
    path("sign-in/", SignIn.as_view(), name="login"),
    path("audit/", audit_views.audit, name="audit"),
    path("audit/export/", audit_views.export, name="audit-export"),
    path("sign-out/", posted.only(LogoutView.as_view()), name="logout"),
    path("settings/", settings_page, name="settings"),
]
