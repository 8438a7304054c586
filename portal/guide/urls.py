from django.urls import path

from portal.guide import views

urlpatterns = [
    path("", views.start, name="start"),
    path("arrive/", views.arrive, name="arrive"),
    path("done/", views.finish, name="start-done"),
    path("rules/", views.edit_rules, name="house-rules"),
]
