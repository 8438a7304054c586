"""A backup that is made while everything runs restores what people had: on SQLite and on PostgreSQL."""

import contextlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from apiproxy.dataplane import file_locks
from apiproxy.dataplane.ledger import Spool
from tests.apiproxy.usage_events import usage
from tests.installation import ROOT, Installation, installed
from tests.ports import unused_port
from tests.postgres import Postgres, postgres
from tests.waiting import until

# Prints the text of a key and of a session; "recorded" is a call that is in the database.
FURNISH = """
import json
from importlib import import_module
from django.conf import settings
from apiproxy.bridge import catalogue_loader
from portal.accounts.models import Tenant, User
from portal.keys.lifecycle import issue_key
from apiproxy.dataplane.usage_events import Usage
tenant = Tenant.objects.create(slug="research", name="研究部")
User.objects.create_user("alice")
key, text = issue_key(tenant=tenant, service="test", name="test")
session = import_module(settings.SESSION_ENGINE).SessionStore()
session["who"] = "alice"
session.create()
catalogue_loader.record_usage([Usage(**{{**{call}, "key": key.pk, "tenant": tenant.pk}})])
print(json.dumps({{"key": key.pk, "tenant": tenant.pk, "text": text, "session": session.session_key}}))
"""
# Prints the ids of a new key and of what it belongs to.
ISSUE = """
import json
from portal.accounts.models import Tenant, User
from portal.keys.lifecycle import issue_key
tenant = Tenant.objects.create(slug="newest", name="newest")
user = User.objects.create_user("newest")
key, _ = issue_key(tenant=tenant, service="newest", name="newest")
print(json.dumps({"key": key.pk, "tenant": tenant.pk, "user": user.pk}))
"""
# Moves the spool as the next gateway does, and prints what people then find.
FIND = """
import json, os
from importlib import import_module
from django.conf import settings
from django.db.models import Sum
from apiproxy.bridge import catalogue_loader
from apiproxy.dataplane.ledger import UsageDrain
from portal.keys.models import ApiKey
from portal.usage.models import UsageRecord
UsageDrain(settings.SPOOL, catalogue_loader.record_usage).run()
session = import_module(settings.SESSION_ENGINE).SessionStore(os.environ["SESSION"])
print(json.dumps({
    "keys": ApiKey.objects.filter(digest__in=catalogue_loader.digests(os.environ["KEY"])).count(),
    "who": session.get("who"),
    "calls": sorted(UsageRecord.objects.values_list("request_id", flat=True)),
    "tokens": UsageRecord.objects.aggregate(sum=Sum("prompt_tokens"))["sum"],
}))
"""


@dataclass
class Company:
    """An installation in which people have something, and what they have."""

    here: Installation
    facts: dict[str, Any]
    found: dict[str, Any]

    def back_up(self, directory: Path, *words: str, **env: str) -> Path:
        here = Installation(self.here.var, 0, {**self.here.env, **env})
        line = here.manage("backup", str(directory), *words).splitlines()[0]
        return Path(line.partition(": ")[0])

    def find(self, installation: Installation) -> dict[str, Any]:
        more = {"KEY": self.facts["text"], "SESSION": self.facts["session"]}
        return json.loads(run_shell(installation, FIND, **more))


def run_shell(installation: Installation, script: str, **more: str) -> str:
    other = Installation(installation.var, 0, {**installation.env, **more})
    return other.manage("shell", "--verbosity", "0", "--command", script)


def furnish(here: Installation) -> Company:
    """Make a company: of its three calls, one is in the database and in the spool, one in the spool alone, one open."""
    recorded = usage("recorded", replica=None, prompt_tokens=5)
    facts = json.loads(run_shell(here, FURNISH.format(call=asdict(recorded))))
    owner = {"key": facts["key"], "tenant": facts["tenant"]}
    spool = Spool(here.var / "spool")
    spool.close_call(replace(recorded, **owner))
    spool.close_call(replace(recorded, request_id="spooled", **owner))
    spool.open_call(replace(recorded, request_id="open", prompt_tokens=1, **owner))
    spool.sync()
    found = {"keys": 1, "who": "alice", "calls": ["open", "recorded", "spooled"], "tokens": 11}
    return Company(here, facts, found)


@pytest.fixture(scope="module")
def company(tmp_path_factory) -> Iterator[Company]:
    """Provide one on SQLite."""
    with installed(tmp_path_factory.mktemp("company") / "var") as here:
        yield furnish(here)


@pytest.fixture(scope="module")
def backup(company, tmp_path_factory) -> Path:
    return company.back_up(tmp_path_factory.mktemp("backups"))


@pytest.fixture
def new(company, tmp_path) -> Installation:
    """Provide a machine to restore on: nothing is there."""
    var = tmp_path / "new"
    var.mkdir()
    return Installation(var, 0, {**company.here.env, "MADOGUCHI_VAR": str(var)})


def refusal(installation: Installation, *words: str, **more: Any) -> str:
    """Return the sentence with which a command fails."""
    done = run(installation, *words, **more)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def run(installation: Installation, *words: str, before: tuple[str, ...] = (), **more: Any) -> Any:
    command = [*before, sys.executable, str(ROOT / "manage.py"), *words]
    return subprocess.run(command, env=installation.env, capture_output=True, text=True, **more)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_people_had_is_there_again_on_another_machine(company, backup, new):
    (new.var / "stale").touch()  # nothing of an earlier installation is in the way
    new.manage("restore", str(backup))
    assert company.find(new) == company.found
    assert {path.stat().st_mode & 0o77 for path in new.var.rglob("*") if path.is_file() and path.name != "stale"} == {0}


def test_a_backup_is_private_and_complete_when_its_name_appears(backup):
    assert names(backup.parent) == [backup.name]
    assert names(backup) == ["database.sqlite3", "files.tar", "manifest.json"]
    assert backup.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in backup.iterdir()} == {0o600}


def test_a_rehearsal_changes_nothing(backup, new):
    new.manage("restore", "--check", str(backup))
    assert names(new.var) == []


def test_one_changed_byte_is_found_before_anything_changes(backup, new, tmp_path):
    for name in ("database.sqlite3", "files.tar"):
        damaged = tmp_path / name / backup.name
        shutil.copytree(backup, damaged)
        with (damaged / name).open("r+b") as file:
            file.seek(-2000, os.SEEK_END)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        assert name in refusal(new, "restore", str(damaged))
    assert names(new.var) == []


def test_a_backup_of_a_newer_version_is_refused(backup, new, tmp_path):
    newer = tmp_path / backup.name
    shutil.copytree(backup, newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    manifest["migrations"].append("keys.9999_from_the_future")
    (newer / "manifest.json").write_text(json.dumps(manifest))
    assert "keys.9999_from_the_future" in refusal(new, "restore", str(newer))


def test_the_database_of_an_older_version_is_migrated(company, new, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(company.here.var, older)
    origin = Installation(older, 0, {**company.here.env, "MADOGUCHI_VAR": str(older)})
    origin.manage("migrate", "--verbosity", "0", "backups", "zero")
    done = run(origin, "backup", str(tmp_path / "backups"))
    (backup,) = (tmp_path / "backups").iterdir()  # complete, although its run cannot be recorded
    assert done.returncode == 0
    new.manage("restore", str(backup))
    assert new.read("select path from backups_backuprun") == [(str(backup),)]


def test_calls_of_a_key_made_after_the_backup_are_not_those_of_the_next_key(company, backup, new):
    new.manage("restore", str(backup))
    later = json.loads(run_shell(new, ISSUE))
    spool = Spool(new.var / "spool")  # of calls since the backup, on this machine
    spool.close_call(usage("since", **later))
    spool.close()
    new.manage("restore", "--replace", str(backup))
    assert company.find(new)["calls"] == ["open", "recorded", "since", "spooled"]
    following = json.loads(run_shell(new, ISSUE))
    assert {name for name in later if later[name] == following[name]} == set()


@pytest.mark.parametrize("lock", ["gateway.lock", "supervisor.lock"])
def test_nothing_is_restored_below_a_running_process(backup, new, lock):
    (new.var / "run").mkdir()
    held = file_locks.acquire(new.var / "run" / lock)
    try:
        assert str(new.var) in refusal(new, "restore", str(backup))
    finally:
        os.close(held)
    assert names(new.var) == ["run"]


def test_what_people_made_is_replaced_only_if_that_is_wanted(company, backup, new):
    shutil.copytree(company.here.var, new.var, dirs_exist_ok=True)
    (new.var / "api-key-secret").write_text("of this machine")
    with contextlib.closing(sqlite3.connect(new.var / "madoguchi.sqlite3")) as database, database:
        database.execute("UPDATE accounts_user SET username = 'bob'")
    assert "1 people, 1 keys, 1 calls" in refusal(new, "restore", str(backup))
    assert (new.var / "api-key-secret").read_text() == "of this machine"
    new.manage("restore", "--replace", str(backup))
    assert new.read("SELECT username FROM accounts_user") == [("alice",)]
    assert (new.var / "api-key-secret").read_bytes() == (company.here.var / "api-key-secret").read_bytes()


def test_a_damaged_database_can_be_replaced(backup, new):
    (new.var / "madoguchi.sqlite3").write_bytes(b"not a database" * 1000)
    (new.var / "madoguchi.sqlite3-wal").write_bytes(b"of the old file")
    assert "--replace" in refusal(new, "restore", str(backup))
    new.manage("restore", "--replace", str(backup))
    assert new.read("SELECT username FROM accounts_user") == [("alice",)]


def test_a_secret_of_the_environment_must_be_that_of_the_backup(backup, new):
    new.env["API_KEY_SECRET"] = "another one than the keys were stored under"
    assert "API_KEY_SECRET" in refusal(new, "restore", str(backup))
    assert not (new.var / "madoguchi.sqlite3").exists()


def test_configuration_is_laid_beside_what_differs(company, new, tmp_path):
    tenants, password = tmp_path / "tenants.json", tmp_path / "password"
    tenants.write_text("{}")
    password.write_text("as it was")
    directory = {
        "LDAP_SERVER_URI": "ldaps://directory.example.co.jp",
        "LDAP_USER_BASE": "ou=people,dc=example,dc=co,dc=jp",
        "LDAP_GROUP_TENANTS_FILE": str(tenants),
        "LDAP_BIND_DN": "cn=madoguchi,dc=example,dc=co,dc=jp",
        "LDAP_BIND_PASSWORD_FILE": str(password),
    }
    backup = company.back_up(tmp_path / "backups", **directory)
    password.write_text("as it is")
    new.manage("restore", str(backup))
    assert password.read_text() == "as it is"
    restored = new.var / "restored"
    assert (restored / str(password)[1:]).read_text() == "as it was"
    assert not (restored / str(tenants)[1:]).exists()  # it is the same


def test_as_many_backups_stay_as_wanted_and_nothing_else_is_removed(company, tmp_path):
    (tmp_path / "madoguchi-20200101T000000Z").mkdir()  # not ours: it has no manifest
    (tmp_path / ".madoguchi-20200101T000000Z.draft").mkdir()  # of a backup that was killed
    (tmp_path / "notes").touch()
    paths = []
    for _ in range(3):
        paths.append(company.back_up(tmp_path, "--keep", "2"))
        old = paths[-1].with_name(paths[-1].name.replace("madoguchi-2026", f"madoguchi-200{len(paths)}"))
        paths[-1] = paths[-1].rename(old)
    company.back_up(tmp_path, "--keep", "2")
    kept = [name for name in names(tmp_path) if name.startswith("madoguchi-20") and "2020" not in name]
    assert len(kept) == 2
    assert paths[-1].name in kept
    assert {"madoguchi-20200101T000000Z", "notes"} <= set(names(tmp_path))
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_a_disk_that_becomes_full_leaves_earlier_backups_and_no_half_one(company, tmp_path):
    earlier = company.back_up(tmp_path)

    def allow_little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    assert refusal(company.here, "backup", str(tmp_path), preexec_fn=allow_little)
    assert names(tmp_path) == [earlier.name]
    assert not list(company.here.var.glob(".backup-*"))
    assert company.here.read("select error <> '' from backups_backuprun order by id desc limit 1") == [(1,)]


def test_a_disk_that_becomes_full_while_restoring_leaves_what_was_there(company, backup, new):
    shutil.copytree(company.here.var, new.var, dirs_exist_ok=True)
    before = names(new.var)

    def allow_little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    assert refusal(new, "restore", "--replace", str(backup), preexec_fn=allow_little)
    assert set(names(new.var)) <= {*before, "run"}
    assert new.read("SELECT username FROM accounts_user") == [("alice",)]


@contextlib.contextmanager
def rehearsing(installation: Installation, backup: Path, reached: Callable[[], Any]) -> Iterator[None]:
    """Provide a rehearsal that has come to this point and stays there; it is killed at the end of the block."""
    command = [sys.executable, str(ROOT / "manage.py"), "restore", "--check", str(backup)]
    process = subprocess.Popen(command, env=installation.env)
    try:
        until(lambda: reached() or process.poll() is not None)
        process.send_signal(signal.SIGSTOP)
        yield
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("following", ["backup", "restore"])
def test_secrets_that_a_killed_rehearsal_left_are_removed_by_the_next_run(company, backup, new, tmp_path, following):
    shutil.copytree(company.here.var, new.var, dirs_exist_ok=True)
    words = ["backup", str(tmp_path / "backups")] if following == "backup" else ["restore", "--check", str(backup)]
    draft = new.var / ".madoguchi.sqlite3.restoring"

    def unpacked() -> list[Path]:
        return list(new.var.glob(".restore-*/state/api-key-secret"))

    with rehearsing(new, backup, unpacked):
        draft.touch()
        found = unpacked()
        new.manage(*words)
        assert unpacked() == found != []  # of a process that lives
        assert draft.exists()
    shutil.rmtree(tmp_path / "backups", ignore_errors=True)
    new.manage(*words)
    assert unpacked() == []
    assert not draft.exists()


def test_no_backup_begins_without_room_for_it(company, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=16m none {disk} && "$@"; status=$?; ls -A {disk}; exit $status'
    before = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    done = run(company.here, "backup", str(disk), before=before)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(disk) in done.stderr


# --- Encrypted


@pytest.fixture(scope="module")
def identity(tmp_path_factory) -> tuple[str, Path]:
    """Return a public key of age, and the file of its private one."""
    path = tmp_path_factory.mktemp("age") / "key.txt"
    subprocess.run(["age-keygen", "-o", path], check=True, capture_output=True)
    done = subprocess.run(["age-keygen", "-y", path], check=True, capture_output=True, text=True)
    return done.stdout.strip(), path


def test_a_backup_for_an_age_key_is_read_by_that_key_alone(company, identity, new, tmp_path):
    public, private = identity
    backup = company.back_up(tmp_path / "backups", "--age-recipient", public)
    assert names(backup) == ["database.sqlite3.age", "files.tar.age", "manifest.json"]
    secret = (company.here.var / "api-key-secret").read_bytes().strip()
    for path in backup.iterdir():
        content = path.read_bytes()
        assert secret not in content
        assert "研究部".encode() not in content
    other = tmp_path / "other.txt"
    subprocess.run(["age-keygen", "-o", other], check=True, capture_output=True)
    assert "age" in refusal(new, "restore", str(backup), "--identity", str(other))
    assert "--identity" in refusal(new, "restore", str(backup))
    assert not (new.var / "madoguchi.sqlite3").exists()
    new.manage("restore", "--check", str(backup), "--identity", str(private))


def test_a_backup_for_a_key_of_gnupg_is_read_by_that_key(company, new, tmp_path):
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    env = {**os.environ, "GNUPGHOME": str(home)}
    make = ["gpg", "--batch", "--passphrase", "", "--quick-generate-key", "backup@example.co.jp", "default", "default"]
    subprocess.run(make, env=env, check=True, capture_output=True)
    new.env["GNUPGHOME"] = str(home)
    try:
        recipient = ("--gpg-recipient", "backup@example.co.jp")
        backup = company.back_up(tmp_path / "backups", *recipient, GNUPGHOME=str(home))
        new.manage("restore", "--check", str(backup))
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], env=env, check=True)
    assert names(backup) == ["database.sqlite3.gpg", "files.tar.gpg", "manifest.json"]


def test_a_missing_tool_and_a_wrong_recipient_are_named_and_leave_nothing(company, tmp_path):
    directory = tmp_path / "backups"
    assert "age1nonsense" in refusal(company.here, "backup", str(directory), "--age-recipient", "age1nonsense")
    bare = Installation(company.here.var, 0, {**company.here.env, "PATH": str(tmp_path)})
    assert "apt-get install age" in refusal(bare, "backup", str(directory), "--age-recipient", "age1nonsense")
    assert not directory.exists()


# --- PostgreSQL


def test_a_database_that_is_away_is_named(company, backup, tmp_path):
    away = {
        **company.here.env,
        "MADOGUCHI_VAR": str(tmp_path),
        "DATABASE_URL": f"postgres://x@127.0.0.1:{unused_port()}/x",
    }
    here = Installation(tmp_path, 0, away)
    made = tmp_path / backup.name
    shutil.copytree(backup, made)
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps({**manifest, "engine": "postgresql"}))
    for words in (("backup", str(tmp_path / "backups")), ("restore", str(made)), ("restore", "--check", str(made))):
        assert away["DATABASE_URL"].split(":")[-1].split("/")[0] in refusal(here, *words)
    assert names(tmp_path / "backups") == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    with postgres() as cluster, psycopg.connect(cluster.url, autocommit=True) as admin:
        admin.execute("CREATE ROLE portal LOGIN PASSWORD 'a secret of the database' CREATEDB")
        for name in ("origin", "target"):
            admin.execute(f"CREATE DATABASE {name} OWNER portal TEMPLATE template0 ENCODING 'UTF8'")
        yield cluster


def database_url(cluster: Postgres, name: str) -> str:
    return f"postgres://portal:a%20secret%20of%20the%20database@127.0.0.1:{cluster.port}/{name}"


@dataclass
class Origin:
    """A company on PostgreSQL, its backup, and the cluster in which its database is."""

    company: Company
    backup: Path
    cluster: Postgres

    @contextlib.contextmanager
    def older(self, directory: Path) -> Iterator[Installation]:
        """Provide a copy of it as before the last migration of backups."""
        name = "older"
        with psycopg.connect(self.cluster.url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name} OWNER portal TEMPLATE origin")
        here = self.company.here
        shutil.copytree(here.var, directory / name)
        more = {"MADOGUCHI_VAR": str(directory / name), "DATABASE_URL": database_url(self.cluster, name)}
        older = Installation(directory / name, 0, {**here.env, **more})
        try:
            older.manage("migrate", "--verbosity", "0", "backups", "zero")
            yield older
        finally:
            with psycopg.connect(self.cluster.url, autocommit=True) as admin:
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def origin(cluster, tmp_path_factory) -> Iterator[Origin]:
    directory = tmp_path_factory.mktemp("origin")
    with installed(directory / "var", DATABASE_URL=database_url(cluster, "origin")) as here:
        company = furnish(here)
        yield Origin(company, company.back_up(directory / "backups"), cluster)


@pytest.fixture
def target(origin, tmp_path) -> Installation:
    """Provide a machine to restore on, whose database is that of the tests before."""
    var = tmp_path / "new"
    env = {"MADOGUCHI_VAR": str(var), "DATABASE_URL": database_url(origin.cluster, "target")}
    return Installation(var, 0, {**origin.company.here.env, **env})


def rename_people(installation: Installation, name: str) -> None:
    with psycopg.connect(installation.env["DATABASE_URL"]) as database:
        database.execute("UPDATE accounts_user SET username = %s", (name,))


def people(installation: Installation) -> list[str]:
    with psycopg.connect(installation.env["DATABASE_URL"]) as database:
        return [row[0] for row in database.execute("SELECT username FROM accounts_user").fetchall()]


def test_postgresql_is_restored_as_a_whole_or_not_at_all(cluster, origin, target):
    assert names(origin.backup) == ["database.pgdump", "files.tar", "manifest.json"]
    with psycopg.connect(target.env["DATABASE_URL"]):  # another process uses it
        assert refusal(target, "restore", str(origin.backup))
    target.manage("restore", "--check", str(origin.backup))
    left = {row[0] for row in cluster.rows("SELECT datname FROM pg_database")}
    assert left == {"postgres", "template0", "template1", "origin", "target"}
    target.manage("restore", str(origin.backup))
    assert origin.company.find(target) == origin.company.found

    # What is there stays if the load fails after it has replaced nearly everything.
    with psycopg.connect(target.env["DATABASE_URL"]) as database:
        database.execute("DROP INDEX backup_by_time")
        database.execute("CREATE SEQUENCE backup_by_time")
    rename_people(target, "bob")
    assert "1 people" in refusal(target, "restore", str(origin.backup))
    assert "backup_by_time" in refusal(target, "restore", "--replace", str(origin.backup))
    assert people(target) == ["bob"]
    with psycopg.connect(target.env["DATABASE_URL"]) as database:
        database.execute("DROP SEQUENCE backup_by_time")


def test_tables_of_another_program_are_named_and_stay(origin, target):
    with psycopg.connect(target.env["DATABASE_URL"]) as database:
        database.execute("CREATE TABLE web_orders (id int)")
        database.execute("CREATE VIEW orders AS SELECT id FROM web_orders")
    said = refusal(target, "restore", "--replace", str(origin.backup))
    assert "web_orders" in said
    with psycopg.connect(target.env["DATABASE_URL"]) as database:
        database.execute("DROP VIEW orders")
        database.execute("DROP TABLE web_orders")


def test_a_view_that_others_made_of_our_tables_is_named_and_stays(origin, target):
    target.manage("restore", "--replace", str(origin.backup))
    with psycopg.connect(target.env["DATABASE_URL"]) as database:
        database.execute("CREATE SCHEMA reports")
        database.execute("CREATE VIEW reports.people AS SELECT username FROM accounts_user")
    assert "reports.people" in refusal(target, "restore", "--replace", str(origin.backup))
    with psycopg.connect(target.env["DATABASE_URL"]) as database:
        assert database.execute("SELECT username FROM reports.people").fetchall() == [("alice",)]
        database.execute("DROP SCHEMA reports CASCADE")


def test_tables_of_a_newer_version_are_replaced(origin, target):
    target.manage("restore", "--replace", str(origin.backup))
    with psycopg.connect(target.env["DATABASE_URL"]) as database:
        database.execute("INSERT INTO django_migrations (app, name, applied) VALUES ('keys', '9999_newer', now())")
        database.execute("CREATE TABLE keys_newest (id int)")
    target.manage("restore", "--replace", str(origin.backup))
    with psycopg.connect(target.env["DATABASE_URL"]) as database:
        assert database.execute("SELECT to_regclass('keys_newest')").fetchone() == (None,)


def test_a_dump_that_lacks_rows_leaves_the_database_as_it_was(origin, target, tmp_path):
    target.manage("restore", "--replace", str(origin.backup))
    rename_people(target, "bob")
    lacking = tmp_path / origin.backup.name
    shutil.copytree(origin.backup, lacking)
    manifest = json.loads((lacking / "manifest.json").read_text())
    manifest["rows"]["accounts_user"] += 1
    (lacking / "manifest.json").write_text(json.dumps(manifest))
    for words in (("--check",), ("--replace",)):
        assert "accounts_user" in refusal(target, "restore", *words, str(lacking))
    assert people(target) == ["bob"]


def test_a_database_that_cannot_be_migrated_leaves_the_one_there_as_it_was(origin, target, tmp_path):
    target.manage("restore", "--replace", str(origin.backup))
    rename_people(target, "bob")
    with origin.older(tmp_path) as older:
        with psycopg.connect(older.env["DATABASE_URL"]) as database:
            database.execute("CREATE TABLE backups_backuprun (id int)")
        run(older, "backup", str(tmp_path / "backups"))
        (backup,) = (tmp_path / "backups").iterdir()
    assert "migrated" in refusal(target, "restore", "--replace", str(backup))
    assert people(target) == ["bob"]


def test_secrets_are_those_of_the_database_also_when_its_migration_fails(origin, target, cluster, tmp_path):
    target.manage("restore", "--replace", str(origin.backup))
    (target.var / "api-key-secret").write_text("of this machine")
    with origin.older(tmp_path) as older:
        run(older, "backup", str(tmp_path / "backups"))
        (backup,) = (tmp_path / "backups").iterdir()
    admin = cluster.url.rpartition("/")[0] + "/target"
    with psycopg.connect(admin) as database:
        database.execute(
            "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF current_setting('application_name') <> 'psql' THEN RAISE 'no room'; END IF; END $$"
        )
        database.execute("CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION refuse()")
    try:
        assert "no room" in refusal(target, "restore", "--replace", str(backup))
    finally:
        with psycopg.connect(admin) as database:
            database.execute("DROP EVENT TRIGGER refuse")
            database.execute("DROP FUNCTION refuse")
    assert people(target) == ["alice"]
    assert (target.var / "api-key-secret").read_bytes() == (origin.company.here.var / "api-key-secret").read_bytes()
    target.manage("migrate", "--verbosity", "0")
    assert origin.company.find(target) == origin.company.found


def test_a_database_that_a_killed_rehearsal_left_is_removed_by_the_next_backup(origin, target, cluster, tmp_path):
    def left() -> list[tuple[Any, ...]]:
        return cluster.rows("SELECT datname FROM pg_database WHERE datname LIKE 'madoguchi%'")

    with rehearsing(target, origin.backup, left):
        found = left()
        target.manage("backup", str(tmp_path / "first"))
        assert left() == found != []  # of a process that lives
    target.manage("backup", str(tmp_path / "second"))
    assert left() == []
