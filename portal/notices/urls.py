from django.urls import path

from portal import converters  # noqa: F401 - registers `id`
from portal.notices import views

urlpatterns = [
    path("", views.notice_list, name="notices"),
    path("read/", views.read_all, name="notices-read"),
    path("<id:pk>/", views.open_notice, name="notice"),
]
