"""python -m tests.bench.prepare: an empty state directory becomes one with a model, a key and limits. Prints the key.

No supervisor runs during a measurement: what it would write about an external engine is written here, so that its
own work is not counted as the gateway's.
"""

import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
django.setup()

from django.core.management import call_command

from modelregistry.models import Host, Replica, ServedModel
from portal.accounts.models import Membership, Tenant, User
from portal.keys import issuing
from portal.metering.models import Quota

PLENTY = 10**12  # every limit is looked at and counted, none is reached


def main(engine: str) -> None:
    call_command("migrate", verbosity=0)
    tenant = Tenant.objects.create(slug="bench", name="Bench")
    person = User.objects.create_user("bench")
    Membership.objects.create(user=person, tenant=tenant)
    model = ServedModel(name="fake-model", engine=ServedModel.Engine.EXTERNAL, url=engine)
    model.full_clean()
    model.save()
    host = Host.objects.create(name="bench")
    Replica.objects.create(model=model, host=host, state=Replica.State.READY, url=engine)
    _, key = issuing.issue(tenant=tenant, name="bench", user=person)
    for owner in ({"tenant": tenant}, {"user": person}):
        Quota.objects.create(**owner, unit=Quota.Unit.CONCURRENT, amount=PLENTY)
        for unit in (Quota.Unit.REQUESTS, Quota.Unit.TOKENS):
            for window in (Quota.Window.MINUTE, Quota.Window.DAY, Quota.Window.MONTH):
                Quota.objects.create(**owner, unit=unit, window=window, amount=PLENTY)
    print(key)


if __name__ == "__main__":
    main(sys.argv[1])
