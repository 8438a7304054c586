from django.contrib.auth.views import LogoutView
from django.urls import path

from portal.accounts.views import SignIn, settings_page
from portal.web import posted_forms

urlpatterns = [
    path("sign-in/", SignIn.as_view(), name="login"),
    path("sign-out/", posted_forms.only_posted(LogoutView.as_view()), name="logout"),
    path("settings/", settings_page, name="settings"),
]
