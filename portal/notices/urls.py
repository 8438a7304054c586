from django.urls import path

from portal.notices import views

urlpatterns = [
    path("", views.notice_list, name="notices"),
    path("read/", views.read_all, name="notices-read"),
    path("<int:pk>/", views.open_notice, name="notice"),
]
