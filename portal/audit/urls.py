from django.urls import path

from portal.audit import views

urlpatterns = [
    path("", views.audit, name="audit"),
    path("export/", views.export, name="audit-export"),
]
