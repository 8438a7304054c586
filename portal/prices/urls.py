from django.urls import path

from portal.prices import views
from portal.web import converters  # noqa: F401 - registers `id`

urlpatterns = [
    path("", views.price_page, name="prices"),
    path("budgets/", views.set_budget, name="prices-budget"),
    path("display/", views.set_display, name="prices-display"),
    path("<id:pk>/", views.edit_price, name="price"),
    path("<id:pk>/remove/", views.remove_price, name="price-remove"),
]
