from django.apps import AppConfig


class CatalogueConfig(AppConfig):
    name = "portal.catalogue"

    def ready(self) -> None:
        from portal.catalogue.search import KIND
        from portal.web import search

        search.register(KIND)
