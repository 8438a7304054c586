"""Pages compare what was written by the database's clock with that, whatever their own machine's clock shows."""

import json
from datetime import datetime, timedelta

import psycopg
import pytest
from django.core.management import call_command
from django.utils import timezone

from modelregistry import database_clock
from modelregistry.database_clock import read_now
from modelregistry.management.commands import hosts
from modelregistry.models import Host
from tests.postgres import postgres


class Connection:
    """As Django's, of a PostgreSQL."""

    vendor = "postgresql"

    def __init__(self, real: "psycopg.Connection[tuple[datetime]]") -> None:
        self.cursor = real.cursor


@pytest.mark.timeout(120)  # a server starts
def test_the_time_is_the_databases_and_not_this_machines(monkeypatch):
    with postgres() as server, psycopg.connect(server.url, autocommit=True) as real:
        monkeypatch.setattr(database_clock, "connection", Connection(real))
        monkeypatch.setattr(timezone, "now", lambda: datetime(2001, 1, 1, tzinfo=timezone.get_default_timezone()))
        before = real.execute("SELECT clock_timestamp()").fetchone()
        found = read_now()
        assert before
        assert timedelta(0) <= found - before[0] < timedelta(seconds=60)


@pytest.mark.django_db
def test_what_is_shown_of_hosts_is_judged_by_that_time(monkeypatch):
    at = datetime(2031, 1, 1, tzinfo=timezone.get_default_timezone())
    monkeypatch.setattr(hosts, "read_now", lambda: at)
    Host.objects.create(name="gpu-1", seen_at=at)
    [shown] = json.loads(call_command("hosts", "--json"))
    assert shown["supervised"] is True
