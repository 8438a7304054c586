"""The canary's own tenant is Madoguchi's: no form offers it to people."""

import pytest

from portal.keys import canary_key
from tests.html import all_of
from tests.portal.browsing import client_of, read

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    "path",
    [
        *("/news/new/", "/lessons/seminars/new/", "/prices/", "/adoption/", "/operations/models/new/"),
        *("/keys/services/", "/keys/services/new/", "/feedback/", "/operations/weights/", "/use-cases/new/"),
    ],
)
def test_no_form_offers_it(olivia, research, sales, path):
    own = canary_key.own_tenant()
    page = read(client_of(olivia), path)
    choices = [*all_of(page, "main option"), *all_of(page, "main label"), *all_of(page, "main a")]
    offered = " ".join(f"{one.text} {one.attributes}" for one in choices)
    assert own.name not in offered
    assert own.slug not in offered
