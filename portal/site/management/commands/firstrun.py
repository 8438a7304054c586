import os
import shlex
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry.install import demo_models, engine_environments
from modelregistry.install.build_cache import CannotFetch
from modelregistry.plain_numbers import whole_number
from portal.accounts.models import Tenant
from portal.keys.code_samples import curl_sample
from portal.keys.model_access import AvailableModel, Liveness
from portal.site import first_run

WELCOME = """
Madoguchi is set up. Once "Madoguchi answers" appears below, open this address in a browser:

    {address}

{sign_in}
API key (shown only now):
    {key}

This calls the model, once "smollm2 #0: ready" appears below:

{call}
"""
LOCAL = """Sign in there with (shown only now; this person is also an operator):
    user name  {name}
    password   {password}
"""
DIRECTORY = """Sign in with an account of your directory. The key belongs to the tenant "demo", not to a person.
"""
AGAIN = """Once "Madoguchi answers" appears below, open this address in a browser:

    {address}

{person}If you need an API key, create one there under "API keys", or with
    {manage} createkey --tenant {tenant} --service NAME
"""
PEOPLE = """Sign in there with one of these user names:
{names}
The password was shown when this was set up, and is stored nowhere. If you no longer have it, choose a new one with
    {manage} changepassword {name}

"""
ROLES = {
    "demo": "a tenant admin who is also an operator",
    "demo.employee": "an employee",
    "demo.admin": "the admin of a tenant",
    "demo.operator": "an operator, who sees and changes everything",
}


class Command(BaseCommand):
    help = (
        "Fetches llama.cpp and two small models, and fills an empty database with a demo tenant, person, key and these "
        "models. `make run` calls it before `up`; calling it again changes nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=whole_number, default=8000)

    def handle(self, *args: Any, **options: Any) -> None:
        address = settings.PUBLIC_URL or f"http://127.0.0.1:{options['port']}"
        first = first_run.is_first_run()
        if first or first_run.has_demo_models(settings.CACHE):
            self.fetch()
        self.stdout.write(self.set_up(address) if first else self.describe(address))

    def fetch(self) -> None:
        def say(text: str) -> None:
            self.stdout.write(f"→ {text}")
            self.stdout.flush()  # so that it comes before pip's own lines, in a file too

        try:
            engine_environments.install(engine_environments.XLLAMACPP, settings.CACHE, say)
            for model in demo_models.DEMO_MODELS:
                demo_models.fetch_models(model, settings.CACHE, say)
        except CannotFetch as error:
            raise CommandError(str(error)) from error

    def set_up(self, address: str) -> str:
        """Fill the empty database; return what to show once."""
        demo = first_run.create_demo(settings.CACHE)
        model = demo_models.SMOLLM2
        offer = AvailableModel(
            name=model.name, description="", task=model.task, context=model.context, state=Liveness.STARTING
        )
        return WELCOME.format(
            address=address,
            sign_in=LOCAL.format(name=first_run.NAME, password=demo.password) if demo.password else DIRECTORY,
            key=demo.key,
            call=curl_sample(offer, f"{address}/v1", demo.key),
        )

    def describe(self, address: str) -> str:
        """Return what to show when the database is in use already."""
        names = list(first_run.demo_people().values_list("username", flat=True))
        manage = self.manage_command()
        lines = "\n".join(f"    {name:<14} {ROLES.get(name, '')}".rstrip() for name in names)
        person = PEOPLE.format(names=lines, name=names[-1], manage=manage) if names else ""
        tenant = first_run.NAME if Tenant.objects.filter(slug=first_run.NAME).exists() else "TENANT"
        return AGAIN.format(address=address, person=person, tenant=tenant, manage=manage)

    def manage_command(self) -> str:
        """Return how to call a command for this installation, wherever its state is, from a shell without variables."""
        state = os.environ.get("MADOGUCHI_VAR", "")
        return f"{f'MADOGUCHI_VAR={shlex.quote(state)} ' if state else ''}.venv/bin/python manage.py"
