"""The portal's pages, as a person's browser reads them."""

import re
from typing import Any

from django.test import Client

from portal.accounts.models import User

WHOLE_KEY = re.compile(r"mdg_[0-9A-Za-z]{38}")  # the text of an API key


def client_of(user: User, **defaults: Any) -> Client:
    """Return a browser in which this person is signed in. `defaults`: what each of its requests has."""
    client = Client(**defaults)
    client.force_login(user, "portal.accounts.backends.LocalBackend")
    return client


def read(client: Client, path: str, **headers: str) -> str:
    response = client.get(path, headers=headers)
    assert response.status_code == 200, (path, response.status_code)
    return response.content.decode()


def send(client: Client, path: str, **form: Any) -> str:
    """Return the page to which the form leads."""
    response = client.post(path, form, follow=True)
    assert response.status_code == 200, (path, response.status_code)
    return response.content.decode()


def send_wrong(client: Client, path: str, **form: Any) -> str:
    """Return the page of a form that is shown again, with what is wrong in it."""
    response = client.post(path, form)
    assert response.status_code == 400, (path, response.status_code)
    return response.content.decode()
