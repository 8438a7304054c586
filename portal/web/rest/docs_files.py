"""Static files of apps, and the three files of Swagger UI that the page of the API's description needs.

Registered as an app, that package would add 33 MB to the static files: Redoc, source maps and a preset, which nothing
here uses, each with and without a hash in its name, and each of these compressed as well.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import drf_spectacular_sidecar
from django.apps import apps
from django.contrib.staticfiles.finders import AppDirectoriesFinder, BaseFinder
from django.core.files.base import ContentFile, File
from django.core.files.storage import FileSystemStorage

WITHIN = "swagger-ui"
NAMES = ("swagger-ui-bundle.js", "swagger-ui-bundle.js.LICENSE.txt", "swagger-ui.css")
# `collectstatic` refuses a style sheet that points at a map which is not there.
SOURCE_MAP = re.compile(rb"/\*# sourceMappingURL=\S+\*/")


class WithoutMaps(FileSystemStorage):
    prefix = WITHIN  # what `collectstatic` puts before a name

    def _open(self, name: str, mode: str = "rb") -> File:  # type: ignore[type-arg]
        return ContentFile(SOURCE_MAP.sub(b"", Path(self.path(name)).read_bytes()), name=name)


class Finder(BaseFinder):
    def __init__(self, *_: Any, **__: Any) -> None:
        package = Path(drf_spectacular_sidecar.__file__).parent
        self.storage = WithoutMaps(package / "static" / "drf_spectacular_sidecar" / "swagger-ui-dist")

    def check(self, **_: Any) -> list[Any]:
        return []

    def find(self, path: str, find_all: bool = False, **_: Any) -> Any:
        within, _slash, name = path.partition("/")
        found = [self.storage.path(name)] if within == WITHIN and name in NAMES else []
        return found if find_all else (found[0] if found else [])

    def list(self, ignore_patterns: Iterable[str] | None) -> Iterator[tuple[str, FileSystemStorage]]:
        return ((name, self.storage) for name in NAMES)


class Apps(AppDirectoriesFinder):
    """Finds files of all apps except Django REST framework, whose own pages (4 MB) are not served here."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__([app.name for app in apps.get_app_configs() if app.name != "rest_framework"])
