from django.urls import path

from portal.notifications import views
from portal.web import converters  # noqa: F401 - registers `id`

urlpatterns = [
    path("", views.notice_list, name="notices"),
    path("read/", views.read_all, name="notices-read"),
    path("<id:pk>/", views.open_notice, name="notice"),
]
