"""Fill an empty database for `make run`, so that there is an account to sign in with and a model to call."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from modelregistry.install.demo_models import DEMO_MODELS
from modelregistry.models import ServedModel
from portal.accounts import directory_users
from portal.accounts.models import Membership, Tenant, User
from portal.keys import lifecycle

NAME = "demo"  # of the tenant, the person and the key
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without letters that look alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Secrets that are shown once. `password` is empty with a directory, whose people sign in as themselves."""

    key: str
    password: str


def is_first_run() -> bool:
    """Return whether the installation is still unused: no person and no tenant exists."""
    return not User.objects.exists() and not Tenant.objects.exists()


def has_demo_models(cache: Path) -> bool:
    """Return whether one of the demo models is still registered."""
    return ServedModel.objects.filter(path__in=[str(model.path(cache)) for model in DEMO_MODELS]).exists()


def demo_people() -> QuerySet[User]:
    """Return the active people that the first start or `demodata` made to sign in with, by user name."""
    mine = Q(username=NAME) | Q(username__startswith=f"{NAME}.")
    return User.objects.filter(mine, is_active=True).order_by("username")


@transaction.atomic
def create_demo(cache: Path) -> Demo:
    """Create a tenant, a key, the demo models and, without a directory, a person who is also an operator."""
    tenant = Tenant.objects.create(slug=NAME, name="Demo")
    register_models(cache)
    if settings.DIRECTORY:
        # A local password in a company that has a directory would be a back door; the key needs no person.
        return Demo(key=lifecycle.issue_key(tenant=tenant, name=NAME, service=NAME)[1], password="")
    password = "-".join("".join(secrets.choice(LETTERS) for _ in range(4)) for _ in range(4))  # 79 bits
    person = directory_users.ensure_person(
        NAME,
        tenant_slug=tenant.slug,
        tenant_name=tenant.name,
        password=password,
        role=Membership.Role.ADMIN,
        is_operator=True,
    )
    return Demo(key=lifecycle.issue_key(tenant=tenant, name=NAME, user=person, created_by=person)[1], password=password)


def register_models(cache: Path) -> None:
    """Register the models that any machine can serve without a GPU. Their files may still have to be fetched."""
    for model in DEMO_MODELS:
        ServedModel.objects.create(
            name=model.name,
            description_ja=model.description_ja,
            description_en=model.description_en,
            engine="llama.cpp",
            task=model.task,
            path=str(model.path(cache)),
            context=model.context,
        )
