"""python -m tests.bench.prepare URL: an empty state directory becomes one with models, keys and limits.

Prints a key and those of more people, one on each line.

No supervisor runs during a measurement: what it would write about an external engine is written here, so that its
own work is not counted as the gateway's.
"""

import argparse
import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
django.setup()

from django.conf import settings
from django.core.management import call_command

from modelregistry.models import Host, Replica, ServedModel
from portal.accounts.models import Membership, Tenant, User
from portal.keys import lifecycle, secret
from portal.keys.models import ApiKey
from portal.quotas.models import Quota
from portal.quotas.units import UNITS

PLENTY = 10**12  # every limit is looked at and counted, none is reached
ENGINE_KEY = "k"  # of an engine that has slots
QUEUED, AT_ONCE = "queued", "at-once"  # models of that engine: of the first its slots are known
TENANTS = 100  # of a large catalogue; its keys are spread over them


def main(engine: str, *, keys: int, models: int, people: int, slots: int) -> None:
    call_command("migrate", verbosity=0)
    tenant = Tenant.objects.create(slug="bench", name="Bench")
    person = User.objects.create_user("bench")
    Membership.objects.create(user=person, tenant=tenant)
    model = ServedModel(name="fake-model", engine="external", url=engine)
    model.full_clean()
    model.save()
    host = Host.objects.create(name="bench")
    ready = {"host": host, "state": Replica.State.READY, "url": engine}
    Replica.objects.create(model=model, **ready)
    _, key = lifecycle.issue_key(tenant=tenant, name="bench", user=person)
    Quota.objects.bulk_create([*limits(tenant=tenant), *limits(user=person)])
    more_models(engine, host, models - 1)
    more_keys(keys - 1)
    print(key)
    for number in range(people):
        person = User.objects.create_user(f"bench-{number}")
        Membership.objects.create(user=person, tenant=tenant)
        print(lifecycle.issue_key(tenant=tenant, name="bench", user=person)[1])
    if slots:
        for name, known in ((QUEUED, slots), (AT_ONCE, None)):
            other = ServedModel.objects.create(name=name, engine="llama.cpp", path="/m.gguf")
            Replica.objects.create(model=other, slots=known, api_key=ENGINE_KEY, **ready)


def limits(**owner: Tenant | User) -> list[Quota]:
    """Seven: every one that there is for all models together."""
    kinds = [(unit.name, window) for unit in UNITS.values() for window in unit.windows]
    return [Quota(**owner, unit=unit, window=window, amount=PLENTY) for unit, window in kinds]


def more_models(engine: str, host: Host, count: int) -> None:
    external = "external"
    made = ServedModel.objects.bulk_create(
        ServedModel(name=f"fake-model-{number}", engine=external, url=engine) for number in range(count)
    )
    Replica.objects.bulk_create(
        Replica(model=model, host=host, state=Replica.State.READY, url=engine) for model in made
    )


def more_keys(count: int) -> None:
    """Make service keys in a hundred tenants that have limits of their own. No gateway runs yet to be notified."""
    if not count:
        return
    tenants = Tenant.objects.bulk_create(
        Tenant(slug=f"bench-{number}", name=f"Bench {number}") for number in range(TENANTS)
    )
    Quota.objects.bulk_create(limit for tenant in tenants for limit in limits(tenant=tenant))
    texts = [secret.make_secret() for _ in range(count)]
    keys = [
        ApiKey(
            tenant=tenants[number % TENANTS],
            service="bench",
            name="bench",
            prefix=text[: secret.PREFIX_LENGTH],
            digest=secret.digest_of(text, settings.API_KEY_SECRET),
        )
        for number, text in enumerate(texts)
    ]
    ApiKey.objects.bulk_create(keys, batch_size=1000)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("engine")
    arguments.add_argument("--keys", type=int, default=1)
    arguments.add_argument("--models", type=int, default=1)
    arguments.add_argument("--people", type=int, default=0)
    arguments.add_argument("--slots", type=int, default=0, help="of the engine, which is two more models then")
    options = arguments.parse_args()
    main(options.engine, keys=options.keys, models=options.models, people=options.people, slots=options.slots)
