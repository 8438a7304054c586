"""Which tenants may call a model, on the command line."""

import pytest
from django.core.management import CommandError, call_command

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant
from portal.keys.model_access import open_to

pytestmark = pytest.mark.django_db


@pytest.fixture
def tenants():
    ServedModel.objects.create(name="m", engine="external", url="http://10.0.0.5:8000")
    return [Tenant.objects.create(slug=slug, name=slug) for slug in ("alpha", "beta", "gamma")]


def access(capsys, *args):
    call_command("modelaccess", "m", *args)
    return capsys.readouterr().out.split()


def callers(tenants):
    return [tenant.slug for tenant in tenants if open_to([tenant]).exists()]


def test_a_model_is_open_to_all_until_somebody_says_otherwise(tenants, capsys):
    assert access(capsys) == ["all"]
    assert callers(tenants) == ["alpha", "beta", "gamma"]


def test_only_the_named_tenants_may_call_it(tenants, capsys):
    assert access(capsys, "--tenant=beta", "--tenant=alpha") == ["alpha", "beta"]
    assert callers(tenants) == ["alpha", "beta"]
    assert access(capsys, "--tenant=gamma") == ["gamma"]
    assert callers(tenants) == ["gamma"]
    assert access(capsys) == ["gamma"]


def test_it_is_opened_to_all_again(tenants, capsys):
    access(capsys, "--tenant=beta")
    assert access(capsys, "--all") == ["all"]
    assert callers(tenants) == ["alpha", "beta", "gamma"]


@pytest.mark.parametrize(
    ("args", "named"), [(("m", "--tenant=alpha", "--tenant=delta"), "delta"), (("other", "--all"), "other")]
)
def test_what_does_not_exist_is_told_and_changes_nothing(tenants, capsys, args, named):
    access(capsys, "--tenant=beta")
    with pytest.raises(CommandError, match=named):
        call_command("modelaccess", *args)
    assert access(capsys) == ["beta"]
