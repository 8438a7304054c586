"""The ASGI application: /v1 and the gateway's own paths to apiproxy, the rest to Django."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

from django.core.asgi import get_asgi_application

application = get_asgi_application()
