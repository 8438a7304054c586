"""An upgrade counts the people of days on which an older version noted no programs."""

from datetime import date

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

BEFORE = [("usage", "0009_names_of_records")]
AFTER = [("usage", "0010_programs_of_earlier_days")]
DAY = date(2026, 11, 2)


@pytest.fixture
def migrated():
    """Migrate back and forth; the schema is the newest again at the end."""
    yield lambda to: MigrationExecutor(connection).migrate(to)
    executor = MigrationExecutor(connection)
    executor.migrate(executor.loader.graph.leaf_nodes())


@pytest.mark.django_db(transaction=True)
def test_days_without_programs_are_counted_once_and_others_left(migrated):
    migrated(BEFORE)
    apps = MigrationExecutor(connection).loader.project_state(BEFORE).apps
    days, programs = apps.get_model("usage", "UsageDay"), apps.get_model("usage", "UsageClientDay")
    mine, service = {"tenant_id": 1, "user_id": 5}, {"tenant_id": 1, "user_id": None}
    days.objects.create(day=DAY, key_id=1, model="a", requests=5, aborted=1, refused=1, **mine)
    days.objects.create(day=DAY, key_id=1, model="b", requests=2, failed=2, **mine)
    days.objects.create(day=DAY, key_id=2, model="a", requests=9, **service)
    days.objects.create(day=DAY, key_id=3, model="a", requests=4, **mine)
    programs.objects.create(day=DAY, key_id=3, client_class="curl", requests=3, answers=3, **mine)
    migrated(AFTER)
    columns = ("key_id", "client_class", "requests", "answers", "tenant_id", "user_id")
    assert set(programs.objects.values_list(*columns)) == {
        (1, "", 7, 3, 1, 5),
        (2, "", 9, 9, 1, None),
        (3, "curl", 3, 3, 1, 5),
    }
    days.objects.all().delete()
    programs.objects.all().delete()
