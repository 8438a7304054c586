"""The settings of a gateway's process: those of the portal without the applications that only pages need.

What renders, signs in and describes takes 30 MB of a process that does none of it.
"""

from portal.settings import *  # noqa: F403
from portal.settings import INSTALLED_APPS as ALL

PAGES_ONLY = frozenset(
    (
        "portal.site.admin_apps.Administration",
        "django.contrib.messages",
        "django.contrib.staticfiles",
        "django.contrib.humanize",
        "whitenoise.runserver_nostatic",
        "csp",
        "drf_spectacular",
    )
)
INSTALLED_APPS = [name for name in ALL if name not in PAGES_ONLY]
