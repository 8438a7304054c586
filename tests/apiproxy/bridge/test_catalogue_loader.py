"""What gateways' catalogues hold, and when they follow a change."""

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.db.models import ProtectedError
from django.utils import timezone
from hypothesis import given, settings

from apiproxy.bridge import apps, catalogue_loader
from apiproxy.bridge.models import CatalogueChange
from apiproxy.dataplane.catalogue import Counter
from apiproxy.dataplane.ledger import DatabaseUnavailable, RecordRefused
from apiproxy.dataplane.limits.units import TOKENS
from apiproxy.dataplane.room import EngineLoad
from apiproxy.dataplane.wake_ups import LOADED_WITHIN, WakeUp
from modelregistry.models import Alias, Host, Replica, ServedModel, WakeCaller, WakeRequest
from modelregistry.supervisor import repository
from modelregistry.supervisor.wake_demand import WakeDemand
from portal.accounts.models import Membership
from portal.keys.lifecycle import issue_key, revoke_key, rotate_key
from portal.keys.lineage import Lineage
from portal.keys.models import ApiKey, ModelAccess
from portal.quotas.models import Quota
from portal.usage.models import UsageRecord
from tests.apiproxy.usage_events import usage
from tests.portal.quotas.quota_rules import naive, one_of_a_kind, quotas

# The bridge is called in threads of the gateway and closes what connections it finds broken: no test's transaction
# may be open around it.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def key(research, alice):
    row, _ = issue_key(tenant=research, user=alice, name="a key")
    return row


@pytest.fixture
def model(db) -> ServedModel:
    return ServedModel.objects.create(name="m", engine="external", url="http://127.0.0.1:1")


def keys() -> list[int]:
    return [found.id for found in catalogue_loader.load().keys.values()]


def number() -> int:
    return catalogue_loader.revision()


def test_a_quota_of_a_unit_that_only_a_newer_version_has_is_left_out(key, research):
    Quota.objects.create(tenant=research, unit="frames", window="day", amount=1)
    Quota.objects.create(tenant=research, unit="tokens", window="day", amount=2)
    (found,) = catalogue_loader.load().keys.values()
    assert [limit.amount for limit in found.limits] == [2]


def test_engines_that_take_what_their_memory_holds_report_how_many_calls_wait_in_them(model):
    host = Host.objects.create(name="h")
    live = {"at": "2026-11-30T00:00:00+00:00", "running": 9, "waiting": 2, "cache_used": 0.5}
    rows = (
        {"launcher": "vllm", "live": live},
        {"launcher": "vllm", "live": live, "slots": 8},
        {"launcher": "vllm", "live": live, "state": "starting"},
        {"launcher": "vllm", "live": {**live, "waiting": None}},
        {"launcher": "vllm"},
        {"launcher": "", "live": live},
    )
    for index, facts in enumerate(rows):
        Replica.objects.create(model=model, host=host, index=index, **{"state": "ready", **facts})
    first = Replica.objects.get(index=0)
    assert catalogue_loader.loads_by_replica() == {first.pk: EngineLoad(live["at"], 2, 0.5)}


@pytest.fixture
def sleeping(db) -> list[ServedModel]:
    return [ServedModel.objects.create(name=name, engine="external", url="http://127.0.0.1:1") for name in "abcd"]


def wake(
    model: ServedModel, owner: int = 1, scope: str = "user", most: int | None = 2, *, batch: bool = False
) -> float:
    return catalogue_loader.request_wake_up(WakeUp(model.pk, (scope, owner), most, not batch))


def age(seconds: float) -> None:
    for row in WakeCaller.objects.all():
        row.at -= timedelta(seconds=seconds)
        row.save()


def test_a_caller_whose_calls_leave_has_only_so_many_models_loaded_within_a_minute(sleeping):
    """Whichever workers its calls came to: what they share is the database."""
    a, b, c, d = sleeping
    assert wake(a) == 0
    age(20)
    assert wake(b) == 0
    assert LOADED_WITHIN - 21 < wake(c) <= LOADED_WITHIN - 20
    assert not WakeRequest.objects.filter(model=c).exists()
    assert wake(a) == 0  # again, so that it counts from now on
    age(LOADED_WITHIN - 1)
    assert wake(c) > 0
    age(1)
    assert wake(c) == wake(d) == 0
    assert wake(b) > 0
    assert WakeCaller.objects.count() == 2


def test_other_callers_have_models_loaded_that_one_may_not(sleeping):
    a, b, c, _ = sleeping
    assert wake(a) == wake(b) == 0
    assert wake(c) > 0
    assert wake(c, 1, "key") == wake(c, 2) == wake(c, 1, most=3) == wake(sleeping[3], 1, most=None) == 0


def test_a_request_to_wake_a_model_says_whether_more_than_a_batch_waits_for_it(sleeping):
    model = sleeping[0]

    def wanted() -> WakeDemand | None:
        return repository.desired_models(host.pk)[model.pk].wake

    host = Host.objects.create(name="h")
    ServedModel.objects.filter(pk=model.pk).update(host=host)
    wake(model, batch=True)
    assert wanted().interactive_at is None
    wake(model, 2)
    found = wanted()
    assert found.interactive_at == found.at > found.since
    wake(model, batch=True)
    assert wanted().interactive_at == found.at < wanted().at


def test_each_change_is_applied_as_if_everything_were_loaded_again(key, alice, bob, research, model, sales):
    host = Host.objects.create(name="h")
    issue_key(tenant=research, user=bob, name="bystander", allowed_models=[model])
    issue_key(tenant=sales, service="Dify", name="bystander")

    def change(thing, **fields) -> None:
        for name, value in fields.items():
            setattr(thing, name, value)
        thing.save()

    def switch(thing, on: bool) -> None:
        change(thing, is_active=on)

    changes = (
        lambda: issue_key(tenant=research, user=alice, name="another"),
        lambda: revoke_key(key),
        lambda: key.allowed_models.add(model),
        lambda: Quota.objects.create(key=ApiKey.objects.first(), unit="requests", window="day", amount=1),
        lambda: Quota.objects.create(user=alice, unit="requests", window="day", amount=1),
        lambda: Quota.objects.create(tenant=sales, unit="tokens", window="month", amount=1),
        lambda: Quota.objects.create(tenant=research, user=alice, unit="tokens", window="day", amount=5),
        lambda: Quota.objects.create(tenant=research, user=bob, unit="tokens", window="day", amount=6),
        lambda: Quota.objects.create(tenant=research, default_for="member", unit="tokens", window="day", amount=7),
        lambda: Quota.objects.create(tenant=sales, default_for="service", unit="concurrent", amount=8),
        lambda: Quota.objects.create(default_for="tenant", unit="requests", window="minute", amount=9),
        lambda: change(Quota.objects.get(default_for="tenant"), amount=10),
        lambda: change(Quota.objects.get(default_for="member"), amount=11),
        lambda: Quota.objects.get(tenant=research, user=alice).delete(),
        lambda: Quota.objects.get(default_for="tenant").delete(),
        lambda: Quota.objects.first().delete(),
        lambda: ModelAccess.objects.create(model=model, tenant=sales),
        lambda: Replica.objects.create(model=model, host=host, state="ready", url="http://127.0.0.1:1"),
        lambda: Replica.objects.get().delete(),
        lambda: Alias.objects.create(name="default", model=model),
        lambda: Alias.objects.get().delete(),
        lambda: switch(alice, False),
        lambda: switch(alice, True),
        lambda: switch(research, False),
        lambda: switch(research, True),
        lambda: change(research, weight=2.5),
        lambda: Membership.objects.get(user=alice).delete(),
        lambda: Membership.objects.create(user=alice, tenant=research),
        lambda: ApiKey.objects.filter(user=alice).last().delete(),
    )
    for happen in changes:
        before = catalogue_loader.load()
        happen()
        assert number() > before.revision
        followed = catalogue_loader.apply_changes(before)
        assert followed == catalogue_loader.load()
    assert {one.weight for one in followed.keys.values() if one.tenant == research.pk} == {2.5}


def test_a_deleted_model_is_followed(research, alice, model):
    before = catalogue_loader.load()
    model.delete()
    assert catalogue_loader.apply_changes(before).models == {}


def test_a_key_for_one_model_opens_no_other_when_that_is_deleted(research, alice, model):
    issue_key(tenant=research, user=alice, name="one", allowed_models=[model])
    model.delete()
    ServedModel.objects.create(name="other", engine="external", url="http://127.0.0.1:1")
    catalogue = catalogue_loader.load()
    (found,) = catalogue.keys.values()
    assert catalogue.offered_models(found, 0) == {}


def test_a_tenant_that_a_model_is_reserved_for_cannot_be_deleted(sales, model):
    ModelAccess.objects.create(model=model, tenant=sales)
    with pytest.raises(ProtectedError):
        sales.delete()


def test_several_changes_are_followed_at_once(key, alice, research):
    before = catalogue_loader.load()
    revoke_key(key)
    issue_key(tenant=research, user=alice, name="new")
    alice.language = "en"
    alice.save()
    assert catalogue_loader.apply_changes(before) == catalogue_loader.load()


def test_a_gateway_that_is_too_far_behind_loads_everything(key, monkeypatch):
    monkeypatch.setattr(apps, "CHANGES_KEPT", 3)
    before = catalogue_loader.load()
    revoke_key(key)
    for _ in range(5):
        ServedModel.objects.create(name=f"m{_}", engine="external", url="http://127.0.0.1:1")
    assert CatalogueChange.objects.count() == 3
    assert catalogue_loader.apply_changes(before).keys == {}


def test_one_changed_key_costs_few_queries(key, alice, research, django_assert_max_num_queries):
    before = catalogue_loader.load()
    revoke_key(key)
    with django_assert_max_num_queries(8):
        catalogue_loader.apply_changes(before)


def test_a_sign_in_is_no_news(alice, client):
    before = number()
    client.force_login(alice)
    assert alice.last_login is not None
    assert number() == before


def test_a_change_that_is_rolled_back_is_not_recorded(alice):
    before = number()
    with transaction.atomic():
        alice.save()
        transaction.set_rollback(True)
    assert number() == before


def test_only_usable_keys_are_in_the_catalogue(key, alice, research, sales):
    assert keys() == [key.pk]
    for field, bad, good in (("revoked_at", timezone.now(), None), ("expires_at", timezone.now(), None)):
        setattr(key, field, bad)
        key.save()
        assert keys() == []
        setattr(key, field, good)
        key.save()
    for thing in (alice, research):
        thing.is_active = False
        thing.save()
        assert keys() == []
        thing.is_active = True
        thing.save()
    assert keys() == [key.pk]
    Membership.objects.filter(user=alice).update(tenant=sales)
    assert keys() == []


def test_a_service_key_needs_no_person(research):
    row, _ = issue_key(tenant=research, service="Dify", name="Dify")
    assert keys() == [row.pk]


def test_a_key_that_expires_later_carries_its_time(research, alice):
    end = timezone.now() + timedelta(days=1)
    issue_key(tenant=research, user=alice, name="k", expires_at=end)
    (found,) = catalogue_loader.load().keys.values()
    assert found.expires == pytest.approx(end.timestamp())


def test_limits_of_tenant_person_and_key_come_together(key, alice, research, model):
    Quota.objects.create(tenant=research, unit="tokens", window="month", amount=3)
    Quota.objects.create(user=alice, unit="requests", window="day", amount=2)
    Quota.objects.create(key=key, unit="concurrent", amount=1, model=model)
    (found,) = catalogue_loader.load().keys.values()
    assert {(limit.counter.scope, limit.amount, limit.counter.model) for limit in found.limits} == {
        ("tenant", 3, None),
        ("user", 2, None),
        ("key", 1, model.pk),
    }


def test_limits_of_keys_are_what_the_rules_say_also_when_they_are_followed(alice, bob, research, sales, model):
    """Whatever quotas there are: the limits of each key in a catalogue are those of `policy`, written out naively."""
    Membership.objects.create(user=alice, tenant=sales)
    rows = [
        issue_key(tenant=tenant, user=user, service="" if user else "Dify", name="k")[0]
        for tenant, user in ((research, alice), (research, bob), (research, None), (sales, alice), (sales, None))
    ]
    tenants, users = dict(zip((1, 2), (research.pk, sales.pk), strict=True)), {1: alice.pk, 2: bob.pk}
    keys, models = {1: rows[0].pk, 2: rows[2].pk}, {1: model.pk, None: None}

    def limits(catalogue) -> dict[int, set]:
        return {
            found.id: {(*limit.counter._replace(unit=limit.counter.unit.name), limit.amount) for limit in found.limits}
            for found in catalogue.keys.values()
        }

    @given(quotas, quotas)
    @settings(max_examples=25, deadline=None)
    def holds(some, others):
        Quota.objects.all().delete()
        catalogue = catalogue_loader.load()
        for drawn in (some, others):
            for quota in drawn:
                quota.pk = None
                quota._state.adding = True
                quota.tenant_id, quota.user_id = tenants.get(quota.tenant_id), users.get(quota.user_id)
                quota.key_id, quota.model_id = keys.get(quota.key_id), models[quota.model_id]
            for quota in one_of_a_kind([*Quota.objects.all(), *drawn])[Quota.objects.count() :]:
                quota.save()
            now = list(Quota.objects.all())
            catalogue = catalogue_loader.apply_changes(catalogue)
            expected = {
                row.pk: {limit_key(*told) for told in naive(now, row.tenant_id, row.user_id, row.pk)} for row in rows
            }
            assert limits(catalogue) == limits(catalogue_loader.load()) == expected

    holds()


def limit_key(scope, tenant, user, key, model, unit, window, amount) -> tuple:
    """Return a row of `naive` as a counter and its amount."""
    owner = {"tenant": tenant, "user": user, "member": user, "key": key}[scope]
    return (scope, owner, model, unit, window, tenant if scope == "member" else None, amount)


def test_a_members_quota_is_neither_the_tenants_nor_the_persons_elsewhere(key, alice, bob, research, sales):
    Membership.objects.create(user=alice, tenant=sales)
    issue_key(tenant=sales, user=alice, name="elsewhere")
    issue_key(tenant=research, user=bob, name="colleague")
    Quota.objects.create(tenant=research, user=alice, unit="tokens", window="day", amount=5)
    limits = {found.id: found.limits for found in catalogue_loader.load().keys.values()}
    assert {pk for pk, found in limits.items() if found} == {key.pk}
    (limit,) = limits[key.pk]
    assert limit.counter == Counter("member", alice.pk, None, TOKENS, "day", research.pk)


def test_what_a_member_spent_is_theirs_in_this_tenant(key, alice, research):
    Quota.objects.create(tenant=research, default_for="member", unit="tokens", window="day", amount=100)
    now = timezone.now().timestamp()
    mine = {"key": key.pk, "user": alice.pk, "tenant": research.pk, "started": now}
    rows = [("mine", {}), ("elsewhere", {"tenant": 9}), ("colleague's", {"user": 9})]
    catalogue_loader.record_usage([usage(name, **{**mine, **other}) for name, other in rows])
    (found,) = catalogue_loader.load().keys.values()
    (limit,) = found.limits
    assert catalogue_loader.usage_since(limit, now).used == 12


def test_a_replica_that_is_not_ready_gets_no_requests(model):
    host = Host.objects.create(name="h")
    for index, state in enumerate(Replica.State.values):
        Replica.objects.create(model=model, host=host, index=index, state=state, url=f"http://127.0.0.1:{index + 1}")
    (found,) = catalogue_loader.load().models.values()
    assert [replica.url for replica in found.replicas] == [
        f"http://127.0.0.1:{Replica.State.values.index('ready') + 1}"
    ]
    assert found.loading_on == {host.pk}


def test_recording_twice_counts_once_and_shows_when_the_key_was_used(key, alice, research):
    row = usage("req_1", key=key.pk, user=alice.pk, tenant=research.pk, started=timezone.now().timestamp())
    before = number()
    catalogue_loader.record_usage([row])
    catalogue_loader.record_usage([row])
    recorded = UsageRecord.objects.get()
    assert (recorded.prompt_tokens, recorded.completion_tokens, recorded.end_user) == (7, 5, "山田")
    key.refresh_from_db()
    assert key.last_used_at == recorded.started_at
    assert number() == before  # usage is no news for catalogues


def test_usage_of_what_was_deleted_is_still_recorded(db):
    catalogue_loader.record_usage([usage("req_1", key=999, user=999, tenant=999)])
    assert UsageRecord.objects.count() == 1


def test_what_was_spent_counts_this_window_of_this_owner(key, alice, research, model):
    Quota.objects.create(tenant=research, unit="tokens", window="day", amount=100)
    Quota.objects.create(key=key, unit="requests", window="day", amount=100, model=model)
    now = timezone.now().timestamp()
    mine = {"key": key.pk, "user": alice.pk, "tenant": research.pk}
    catalogue_loader.record_usage(
        [
            usage("today", started=now, **mine),
            usage("this model", started=now, **{**mine, "model": "m"}),
            usage("other model", started=now, **{**mine, "model": "n"}),
            usage("long ago", started=now - 90_000, **mine),
            usage("others", key=9, user=9, tenant=9, started=now),
        ]
    )
    (found,) = catalogue_loader.load().keys.values()
    spent = {limit.counter.unit.name: catalogue_loader.usage_since(limit, now).used for limit in found.limits}
    assert spent == {"tokens": 36, "requests": 2}


@pytest.mark.parametrize("quota", ["its own", "each service key's"])
def test_m9_a_successor_is_counted_as_its_predecessors(db, research, sales, quota):
    """In memory and in Redis, which both count by the limit's counter, and in the records, from which these begin."""
    if quota == "its own":
        key, _ = issue_key(tenant=research, service="Dify", name="first")
        Quota.objects.create(key=key, unit="requests", window="day", amount=3)
    else:
        Quota.objects.create(tenant=research, default_for="service", unit="requests", window="day", amount=3)
        key, _ = issue_key(tenant=research, service="Dify", name="first")
    other, _ = issue_key(tenant=research, service="batch", name="another")
    Quota.objects.create(key=other, unit="requests", window="day", amount=9)
    line = [key]
    catalogue = catalogue_loader.load()
    for _ in range(3):
        line.append(rotate_key(line[-1], timedelta(hours=1))[0])
        catalogue = catalogue_loader.apply_changes(catalogue)
    now = timezone.now().timestamp()
    rows = [usage(f"of {one.pk}", key=one.pk, user=None, tenant=research.pk, started=now) for one in line]
    catalogue_loader.record_usage([*rows, usage("other", key=other.pk, user=None, tenant=research.pk, started=now)])
    for found in (catalogue, catalogue_loader.load()):
        limits = {one.id: one.limits for one in found.keys.values()}
        assert {limits[one.pk] for one in line} == {limits[key.pk]}
        (limit,) = limits[line[-1].pk]
        assert catalogue_loader.usage_since(limit, now).used == 4
        assert catalogue_loader.usage_since(limits[other.pk][0], now).used == 1


def test_m9_however_keys_point_at_each_other_their_line_has_an_end():
    circle = Lineage([(1, 2), (2, 3), (3, 1)])
    assert circle.first(1) in (1, 2, 3)
    assert set(circle.chain(1)) <= {1, 2, 3}
    assert Lineage([]).chain(7) == [7]
    assert Lineage([(5, 4), (6, 5)]).chain(5) == [4, 5, 6]


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt_tokens", 2**70), ("started", 1e30), ("duration_ms", -1)],
)
def test_m7_a_row_that_no_database_takes_is_refused_by_name(key, name, value):
    with pytest.raises(RecordRefused):
        catalogue_loader.record_usage([usage("bad", **{"key": key.pk, name: value})])
    assert UsageRecord.objects.count() == 0


def test_m7_a_number_that_one_database_takes_is_recorded_as_it_is_or_refused_by_name(key):
    """SQLite's integers have 64 bits, PostgreSQL's here 32."""
    try:
        catalogue_loader.record_usage([usage("large", key=key.pk, prompt_tokens=2**40)])
    except RecordRefused:
        assert connection.vendor == "postgresql"
        assert UsageRecord.objects.count() == 0
    else:
        assert connection.vendor == "sqlite"
        assert UsageRecord.objects.get().prompt_tokens == 2**40


def test_m7_a_table_that_is_not_as_it_should_be_refuses_no_row_for_good(key):
    """Before `migrate`: the rows wait in the spool."""
    with connection.schema_editor() as editor:
        editor.execute("ALTER TABLE usage_usagerecord RENAME COLUMN end_user TO not_yet")
    try:
        with pytest.raises(DatabaseUnavailable):
            catalogue_loader.record_usage([usage("a", key=key.pk)])
    finally:
        with connection.schema_editor() as editor:
            editor.execute("ALTER TABLE usage_usagerecord RENAME COLUMN not_yet TO end_user")
