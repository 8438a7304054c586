from django.contrib.auth.views import LogoutView
from django.urls import path

from portal.accounts.views import SignIn, settings_page

urlpatterns = [
    path("sign-in/", SignIn.as_view(), name="login"),
    path("sign-out/", LogoutView.as_view(), name="logout"),
    path("settings/", settings_page, name="settings"),
]
