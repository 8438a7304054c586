"""python -m tests.bench.changes URL COUNT: how soon a gateway knows of keys that are made and revoked. Prints JSON.

In seconds, from the end of the change's transaction to the first answer that follows it. Runs in the state directory
of the gateway at URL, as the commands of its operators do.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from random import random
from time import monotonic, sleep

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
django.setup()

from portal.accounts.models import Tenant
from portal.keys import lifecycle

PATIENCE = 20  # seconds
PAUSE = 0.01


def main(url: str, count: int) -> None:
    tenant = Tenant.objects.get(slug="bench")
    made, revoked = [], []
    for _ in range(count):
        key, text = lifecycle.issue_key(tenant=tenant, name="change", service="bench")
        made.append(_until(url, text, 200))
        sleep(random())  # at any moment between two of the gateway's looks at the database
        lifecycle.revoke_key(key)
        revoked.append(_until(url, text, 401))
    print(json.dumps({"a new key's first 200": made, "a revoked key's first 401": revoked}))


def _until(url: str, key: str, status: int) -> float:
    begun = monotonic()
    while _status(url, key) != status:
        if monotonic() - begun > PATIENCE:
            raise SystemExit(f"no {status} for {PATIENCE} s")
        sleep(PAUSE)
    return monotonic() - begun


def _status(url: str, key: str) -> int:
    request = urllib.request.Request(f"{url}/v1/models/fake-model", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
