from django.urls import path

from portal.adoption import views

urlpatterns = [
    path("", views.adoption_page, name="adoption"),
    path("export/", views.export, name="adoption-export"),
    path("tips/", views.change_tips, name="tips"),
    path("tips/<str:token>/", views.tips_by_link, name="tips-by-link"),
]
