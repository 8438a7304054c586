"""What people do at the same time, on a real PostgreSQL: one change comes after the other, and none is lost."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.installation import Installation, installed
from tests.postgres import postgres

pytestmark = pytest.mark.timeout(300)  # a cluster and an installation are made

PEOPLE, PLACES, ROUNDS = 40, 30, 8
TOGETHER = """
import json, threading
from concurrent.futures import ThreadPoolExecutor
from django.db import connection
from django.utils import timezone
from portal.accounts.models import Membership, Tenant, User
from tests.seminars import seminar_of
from tests.use_cases import case_content, text_content, use_case

def at_once(does):
    together = threading.Barrier(len(does))
    def begin(do):
        try:
            User.objects.exists()  # each has its connection
            together.wait(60)
            return do()
        finally:
            connection.close()
    with ThreadPoolExecutor(len(does)) as pool:
        return list(pool.map(begin, does))

tenant = Tenant.objects.create(slug="SLUG", name="SLUG")
def person(name, role="member"):
    user = User.objects.create(username=f"SLUG-{name}")
    Membership.objects.create(user=user, tenant=tenant, role=role)
    return user
admins = [person("a", "admin"), person("b", "admin")]
"""
PUBLISH = """
from portal.use_cases import publishing
from portal.use_cases.content import UseCaseRefused
rounds = []
for n in range(ROUNDS):
    case = use_case(person(f"author-{n}"), tenant, publisher=None if SAME else admins[0])
    for number, admin in enumerate(admins):
        if not SAME:
            publishing.save_version(admin, case, case_content(text_content(title=f"Draft {number + 2}")))
    def publish(admin, seen):
        try:
            return publishing.publish(admin, case, seen=seen).number
        except UseCaseRefused as refusal:
            return refusal.code
    does = [lambda a=admin, s=seen: publish(a, s) for admin, seen in zip(admins, (1, 1) if SAME else (2, 3))]
    ends = at_once(does)
    case.refresh_from_db()
    versions = {one.number: [one.state, one.text.title] for one in case.versions.all()}
    rounds.append({"ends": ends, "current": case.current.number, "versions": versions})
print(json.dumps(rounds))
"""
JOIN = """
from portal.keys.models import ApiKey
from portal.lessons import seminars
seminar = seminar_of(tenant, admins[0], places=PLACES, tokens=1000)
code, people = seminars.code_of(seminar), [person(f"guest-{n}") for n in range(PEOPLE)]
def join(user):
    try:
        return bool(seminars.join_seminar(user, code, timezone.now())[1])
    except seminars.SeminarRefused as refusal:
        return refusal.code
ends = at_once([lambda one=user: join(one) for user in people])
print(json.dumps([ends, seminar.participants.count(), ApiKey.objects.usable().filter(tenant=tenant).count()]))
"""

BOUNDS = """
from datetime import timedelta
from uuid import uuid4
from django.conf import settings
from django.core.exceptions import ValidationError
from portal.feedback import recording
from portal.keys import lifecycle, management_keys
from portal.notifications import webhooks
from portal.notifications.models import Webhook
from portal.use_cases import publishing, reactions
from portal.web.refusals import Refused
publishing.MOST_OPEN = reactions.MOST_COMMENTS = webhooks.MOST_WEBHOOKS = 3
recording.MOST_IN_AN_HOUR = settings.KEYS_PER_PERSON = settings.SERVICE_KEYS_PER_TENANT = 3
author, case = person("author"), use_case(person("other"), tenant, publisher=admins[0])
now, later = timezone.now(), timezone.now() + timedelta(days=9)
def attempt(do):
    try:
        do()
        return True
    except (Refused, ValidationError):
        return False
def issue_key(user):
    service = "" if user else "Dify"
    lifecycle.issue_key(tenant=tenant, user=user, service=service, name=uuid4().hex, created_by=admins[0])
def give_feedback(user_id):
    given = recording.GivenFeedback(request_id=uuid4().hex, score=1)
    recording.record_feedback(given, user_id=user_id, tenant_id=tenant.pk, now=now)
def add_webhook():
    row = Webhook(name=uuid4().hex, style="slack", url="https://hooks.example", language="ja", kinds=[])
    webhooks.save_webhook(row)
does = {
    "use cases": lambda: publishing.create_case(author, tenant, case_content()),
    "comments": lambda: reactions.add_comment(author, case, "text"),
    "feedback of a person": lambda: give_feedback(author.pk),
    "feedback of services": lambda: give_feedback(None),
    "keys of a person": lambda: issue_key(author),
    "service keys": lambda: issue_key(None),
    "management keys": lambda: management_keys.issue_management_key(
        user=author, name=uuid4().hex, scopes_=["keys:read"], expires_at=later
    ),
    "webhooks": add_webhook,
}
print(json.dumps({what: at_once([lambda: attempt(do)] * 12).count(True) for what, do in does.items()}))
"""


@pytest.fixture(scope="module")
def portal(tmp_path_factory) -> Iterator[Installation]:
    env = {"DATABASE_POOL": str(PEOPLE + 5)}
    with postgres() as cluster, installed(tmp_path_factory.mktemp("var"), DATABASE_URL=cluster.url, **env) as place:
        yield place


def run(portal: Installation, slug: str, script: str, **values: object) -> Any:
    """Return what the script prints, in a tenant of its own."""
    for name, value in {"ROUNDS": ROUNDS, "PLACES": PLACES, "PEOPLE": PEOPLE, **values}.items():
        script = script.replace(name, str(value))
    return json.loads(portal.manage("shell", "--verbosity", "0", "--command", TOGETHER.replace("SLUG", slug) + script))


def test_of_two_who_publish_a_proposal_at_once_one_does(portal):
    for one in run(portal, "same", PUBLISH, SAME=True):
        assert sorted(map(str, one["ends"])) == ["1", "state"]
        assert one["current"] == 1
        assert [state for state, _ in one["versions"].values()] == ["published"]


def test_of_two_who_publish_their_own_versions_at_once_the_newer_is_shown_and_the_other_kept(portal):
    for one in run(portal, "own", PUBLISH, SAME=False):
        first, second = one["ends"]
        assert second == one["current"] == 3
        assert first in (2, "changed")  # before the other, or after it
        states = {number: state for number, (state, _) in one["versions"].items()}
        assert states == {"1": "replaced", "2": "replaced" if first == 2 else "draft", "3": "published"}
        assert [title for _, title in one["versions"].values()][1:] == ["Draft 2", "Draft 3"]


def test_of_what_one_person_sends_at_once_no_more_is_taken_than_may_be(portal):
    taken = run(portal, "bounds", BOUNDS)
    assert taken == dict.fromkeys(taken, 3)
    assert len(taken) == 8


def test_forty_who_join_at_once_get_thirty_places(portal):
    ends, participants, keys = run(portal, "seminar", JOIN)
    assert (ends.count(True), ends.count("full")) == (PLACES, PEOPLE - PLACES)
    assert (participants, keys) == (PLACES, PLACES)
