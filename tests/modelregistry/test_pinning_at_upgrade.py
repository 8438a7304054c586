"""An upgrade unloads nothing that operators kept loaded."""

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

BEFORE = [("modelregistry", "0004_awake_hours")]
AFTER = [("modelregistry", "0005_eviction")]


@pytest.fixture
def migrated():
    """Migrate back and forth; the schema is the newest again at the end."""
    yield lambda to: MigrationExecutor(connection).migrate(to)
    executor = MigrationExecutor(connection)
    executor.migrate(executor.loader.graph.leaf_nodes())


@pytest.mark.django_db(transaction=True)
def test_models_that_never_slept_are_pinned_and_others_are_not(migrated):
    migrated(BEFORE)
    models = MigrationExecutor(connection).loader.project_state(BEFORE).apps.get_model("modelregistry", "ServedModel")
    models.objects.create(name="always", engine="vllm")
    models.objects.create(name="idle", engine="vllm", idle_after=600)
    models.objects.create(name="office", engine="vllm", hours="Mon-Fri 08:00-20:00")
    models.objects.create(name="outside", engine="external")
    migrated(AFTER)
    after = MigrationExecutor(connection).loader.project_state(AFTER).apps.get_model("modelregistry", "ServedModel")
    assert set(after.objects.filter(pinned=True).values_list("name", flat=True)) == {"always"}
    after.objects.all().delete()
