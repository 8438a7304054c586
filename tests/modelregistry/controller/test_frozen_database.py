"""A controller whose PostgreSQL hangs says so, does without it, and goes on when it answers again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from modelregistry.supervisor.database import DATABASE_AWAY, DATABASE_BACK
from tests.postgres import postgres
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)  # a database of its own is created and migrated

SEEN = "select seen_at from modelregistry_controllerclaim"
TIMEOUT = 1  # DATABASE_TIMEOUT


def manage(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), *arguments]


def test_a_controller_does_not_hang_with_its_database(tmp_path):
    with postgres() as database:
        environment = os.environ | {
            "MADOGUCHI_VAR": str(tmp_path),
            "MADOGUCHI_HOST": "here",
            "DATABASE_URL": database.url,
            "DATABASE_TIMEOUT": str(TIMEOUT),
            "MADOGUCHI_CANARY_HOUR": "off",
        }
        subprocess.run(manage("migrate", "--verbosity", "0"), env=environment, check=True, timeout=120)
        log = tmp_path / "log"
        with log.open("w") as written:
            controller = subprocess.Popen(manage("supervise"), env=environment, stderr=written)
        try:
            until(lambda: "this is the site's controller" in log.read_text())
            with database.frozen():
                until(lambda: DATABASE_AWAY.partition("%")[0] in log.read_text(), 20)
            until(lambda: DATABASE_BACK in log.read_text())
            [before] = database.rows(SEEN)
            until(lambda: database.rows(SEEN) != [before])
            assert "Traceback" not in log.read_text()
        finally:
            controller.kill()
            controller.wait()
            print(log.read_text())
