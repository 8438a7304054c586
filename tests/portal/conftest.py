"""What the portal's tests share: people at their browsers, and a portal that is connected to the test directory."""

from collections.abc import Callable, Iterator
from typing import Any

import environs
import pytest
from django.test import Client

from portal.accounts import ldap as company
from portal.accounts.models import User
from tests.conftest import person
from tests.domain_controller import connect_domain, domain  # noqa: F401 - fixtures
from tests.html import texts
from tests.portal.access_rules import clients, filled  # noqa: F401 - fixtures
from tests.portal.browsing import client_of
from tests.portal.calling import call, described  # noqa: F401 - fixtures
from tests.slapd import Directory

BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "portal.accounts.ldap.Backend",
    "portal.accounts.backends.LocalBackend",
]


class Door:
    """The sign-in page, as a person at `address` uses it."""

    def __init__(self, address: str = "10.0.0.7") -> None:
        self.address = address
        self.client = Client(REMOTE_ADDR=address)
        self.response = None

    def enter(self, username: str, password: str, **headers: str) -> User | None:
        """Sign in and return who is signed in afterwards; None if no person is."""
        self.client.logout()
        form = {"username": username, "password": password}
        self.response = self.client.post("/sign-in/", form, headers=headers)
        assert self.response.status_code in (200, 302, 400, 429, 503)
        return self.who()

    def who(self) -> User | None:
        number = self.client.session.get("_auth_user_id")
        return User.objects.get(pk=number) if number else None

    @property
    def error(self) -> str:
        """The code of the form's error, whose sentence the page shows."""
        assert self.response is not None
        [error] = self.response.context["form"].non_field_errors().as_data()
        assert error.messages == texts(self.response, ".notice.error p")
        return error.code


@pytest.fixture
def as_alice(alice) -> Client:
    return client_of(alice)


@pytest.fixture
def as_bob(bob) -> Client:
    return client_of(bob)


@pytest.fixture
def as_olivia(olivia) -> Client:
    return client_of(olivia)


@pytest.fixture
def carol(research) -> User:
    """Return a second admin of Bob's tenant."""
    return person("carol", research, role="admin", first_name="Carol")


@pytest.fixture
def door(db) -> Door:
    return Door()


@pytest.fixture
def connect(settings, monkeypatch, directory: Directory) -> Callable[..., company.DirectorySettings]:
    """Connect the portal to the test directory (`of`: another) with the LDAP_* variables of its `env`, as changed."""

    def connect(of: Any = directory, **overrides: str | None) -> company.DirectorySettings:
        with monkeypatch.context() as patch:
            for name, value in of.env(**overrides).items():
                patch.setenv(name, value)
            read = company.read_settings(environs.FileAwareEnv())
        assert read is not None
        for name, value in {"DIRECTORY": read, **company.auth_settings(read)}.items():
            setattr(settings, name, value)
        settings.AUTHENTICATION_BACKENDS = BACKENDS
        return read

    return connect


@pytest.fixture
def everybody(connect, door, directory: Directory) -> list[str]:
    """Let four people of the directory sign in, and return their names."""
    connect()
    names = ["alice", "bob", "charlie", "yamada"]
    for name in names:
        assert door.enter(name, directory.people[name].password)
    return names


@pytest.fixture
def newcomer(directory: Directory) -> Iterator[Callable[..., str]]:
    """Provide a function that hires a person into groups; dismiss those who are still there at the end."""
    hired = []

    def hire(uid: str, *groups: str) -> str:
        hired.append(directory.hire(uid, *groups).uid)
        return uid

    yield hire
    for uid in hired:
        if uid in directory.people:
            directory.dismiss(uid)
