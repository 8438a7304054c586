"""Settings of a test run: ours, in a place of its own, with nothing from the developer's environment.

Not in conftest.py: pytest-django reads the settings before any conftest. Processes that tests start run portal.settings
on the environment that is made here, and so do the workers of pytest-xdist, each with a database of its own: a copy of
the one that is migrated once for all of them.
"""

import atexit
import os
import shutil
import tempfile

from tests import made_once

made_once.directory()  # before there are workers, which share it
_var = tempfile.mkdtemp(prefix="madoguchi-test-")
atexit.register(shutil.rmtree, _var, ignore_errors=True)
os.environ["MADOGUCHI_VAR"] = _var
os.environ["DJANGO_SETTINGS_MODULE"] = "portal.settings"
for _name in [name for name in os.environ if name.startswith(("LDAP_", "REDIS_", "EMAIL_")) or name == "DATABASE_URL"]:
    del os.environ[_name]

from portal.settings import *  # noqa: E402, F403
