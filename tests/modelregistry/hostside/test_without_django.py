"""What runs on a host is importable where there is no Django."""

import subprocess
import sys

from django.conf import settings

ASK = """
import pkgutil, sys
sys.path.insert(0, sys.argv[1])
for name in ("django", "portal", "apiproxy"):
    sys.modules[name] = None  # importing it raises ImportError
import modelregistry.hostside, modelregistry.transfer
for package in (modelregistry.hostside, modelregistry.transfer):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        __import__(found.name)
from modelregistry.hostside.remote import HostServer
print("imported")
"""


def test_a_host_needs_no_django():
    done = subprocess.run(
        [sys.executable, "-I", "-c", ASK, str(settings.BASE_DIR)],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("imported\n", "")
