"""The cast: Alice owns, Bob is admin of her tenant, Charlie is an outsider, Olivia operates."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management.commands import flush
from django.db import DataError, connection, models
from django.utils import translation

from portal.accounts.models import Membership, Tenant, User
from tests import installation
from tests.slapd import directory  # noqa: F401 - a fixture
from tests.translations import japanese  # noqa: F401 - for every test: with and without it texts would differ

# Files that take minutes, the longest first: begun last, one of them would run alone beside an idle core.
LONG = (
    "browser/test_every_page.py",
    "modelregistry/test_vllm_life.py",
    "modelregistry/test_vllm_ranks.py",
    "modelregistry/controller/test_gangs.py",
    "chaos/test_chaos.py",
    "apiproxy/test_workers.py",
    "apiproxy/test_vllm.py",
    "portal/api/test_fuzz.py",
    "release/test_install.py",
    "restart/test_restart.py",
    "test_upgrade.py",
    "test_room_for_two.py",
    "apiproxy/test_neighbours.py",
    "apiproxy/test_vllm_pooling.py",
    "modelregistry/supervisor/test_making_room.py",
    "browser/test_operations.py",
    "browser/test_page_sizes.py",
    "browser/test_admin.py",
    "apiproxy/bridge/test_usage_reconciliation.py",
    "modelregistry/test_vllm_sleep.py",
    "modelregistry/install/test_engine_environments.py",
    "browser/test_days.py",
    "apiproxy/test_canary.py",
    "portal/lessons/test_seminar_day.py",
    "apiproxy/test_replicas_of_prefixes.py",
    "test_fuzz.py",
    "browser/walks/test_walks.py",
    "portal/test_page_costs.py",
    # And those of half a minute whose names come last.
    "portal/access/test_access.py",
    "portal/usage/test_pages.py",
    "portal/test_leavers.py",
    "release/test_release.py",
    "rfc/test_behaviours.py",
    "test_story.py",
)

# On a machine that does other work an example takes long, which says nothing of the code.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")


def pytest_xdist_auto_num_workers() -> int:
    """Return three on two cores: nearly half of the time tests wait for engines, clocks and browsers."""
    return len(os.sched_getaffinity(0)) * 3 // 2 or 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {str(Path(__file__).parent / name): rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(str(item.path), len(LONG)))


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_keepdb, django_db_modify_db_settings_parallel_suffix) -> None:
    """Have workers begin with a copy of the database that one of them has migrated: 9 s of CPU."""
    if django_db_keepdb:
        shutil.copy(installation.migrated(), connection.settings_dict["TEST"]["NAME"])


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """Keep what a worker of pytest-xdist has copied. Its directory is removed after the tests."""
    return "PYTEST_XDIST_WORKER" in os.environ


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker) -> Iterator[None]:
    """Have a test whose transactions are real leave the rows that Django makes of models as they were.

    Django asks about each model once more to make them, after each of 1,500 tests: 100 ms of CPU.
    """
    with django_db_blocker.unblock():
        types, permissions = list(ContentType.objects.all()), list(Permission.objects.all())

    def refill(*_: Any, **__: Any) -> None:
        ContentType.objects.bulk_create(types)
        Permission.objects.bulk_create(permissions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flush, "emit_post_migrate_signal", refill)
        yield


@pytest.fixture(autouse=True)
def _quick_settings(settings):
    """Render pages without `collectstatic`, hash passwords without the slowness that protects real ones."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }


@pytest.fixture(autouse=True)
def _english() -> Iterator[None]:
    """Begin each test in the same language: a page that an earlier one asked for leaves its own behind."""
    with translation.override("en"):
        yield


@pytest.fixture(autouse=True, scope="session")
def _texts_as_postgresql_takes_them() -> Iterator[None]:
    """Refuse texts longer than their column, and null characters: SQLite takes them, PostgreSQL does not."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (models.CharField, models.TextField):
            patch.setattr(kind, "get_db_prep_save", _checked(kind.get_db_prep_save))
        yield


def _checked(prepare: Callable[..., Any]) -> Callable[..., Any]:
    def checked(field: models.Field, given: Any, connection: Any) -> Any:
        value = prepare(field, given, connection)
        if isinstance(value, str) and "\0" in value:
            raise ValueError("A string literal cannot contain NUL (0x00) characters.")
        if isinstance(value, str) and field.max_length is not None and len(value) > field.max_length:
            raise DataError(f"{field}: value too long for type character varying({field.max_length})")
        return value

    return checked


@pytest.fixture
def research(db) -> Tenant:
    return Tenant.objects.create(slug="research", name="研究部")


@pytest.fixture
def sales(db) -> Tenant:
    return Tenant.objects.create(slug="sales", name="営業部")


def person(username: str, tenant: Tenant | None = None, role: str = "member", **more) -> User:
    user = User.objects.create_user(username, f"{username}@example.com", "correct horse", **more)
    if tenant:
        Membership.objects.create(user=user, tenant=tenant, role=role)
    return user


@pytest.fixture
def alice(research) -> User:
    return person("alice", research, first_name="Alice")


@pytest.fixture
def bob(research) -> User:
    return person("bob", research, role="admin", first_name="Bob")


@pytest.fixture
def charlie(sales) -> User:
    return person("charlie", sales, first_name="Charlie")


@pytest.fixture
def olivia(db) -> User:
    return person("olivia", is_staff=True, is_superuser=True, first_name="Olivia")
