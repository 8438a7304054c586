"""Write what happened in the quarter to the audit log, and the state of the directory."""

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timedelta
from random import Random
from typing import Any

from modelregistry.models import ServedModel
from portal.accounts.directory_sync import Outcome
from portal.accounts.models import DirectoryState, Membership, User
from portal.audit import tracking
from portal.audit.models import AuditEvent
from portal.demo import workdays
from portal.demo.keyrings import Holder
from portal.demo.plan import CHAT, CODE, LARGE, NEW, NEW_ADDED, SMALL
from portal.demo.staff import Staff
from portal.keys.models import ApiKey
from portal.quotas.models import Quota

Via = AuditEvent.Via
# What operators did to models: (days ago, action, model, before, after)
DEEDS: tuple[tuple[float, str, str, dict[str, Any] | None, dict[str, Any] | None], ...] = (
    (88.2, "model.add", CODE, None, {"name": CODE, "engine": "vllm", "task": "chat", "context": 16384}),
    (71.0, "model.change", CODE, {"context": 16384}, {"context": 32768}),
    (61.0, "model.restart", LARGE, {"generation": 0}, {"generation": 1}),
    (52.3, "model.add", SMALL, None, {"name": SMALL, "engine": "llama.cpp", "task": "chat"}),
    (40.5, "model.change", LARGE, {"replicas": 1}, {"replicas": 2}),
    (33.1, "model.change", CHAT, {"slots": 8, "replicas": 1}, {"slots": 16, "replicas": 2}),
    (23.0, "model.restart", LARGE, {"generation": 1}, {"generation": 2}),
    (NEW_ADDED, "model.add", NEW, None, {"name": NEW, "engine": "vllm", "task": "chat", "tensor_parallel": 2}),
    (5.9, "model.change", NEW, {"context": None}, {"context": 32768}),
)


def write_journal(
    chance: Random,
    now: datetime,
    staff: Staff,
    holders: list[Holder],
    models: dict[str, ServedModel],
    *,
    directory: bool,
) -> None:
    events = [*_key_events(chance, holders), *_model_events(chance, now, staff, models)]
    events += [*_quota_events(chance, now, staff), *_session_events(chance, now, holders)]
    events += _membership_events(chance, now)
    AuditEvent.objects.bulk_create(sorted(events, key=lambda event: event.at), batch_size=1000)
    if directory:
        people = User.objects.exclude(directory_id=None).count()
        DirectoryState.objects.create(
            tried_at=now - timedelta(minutes=21),
            succeeded_at=now - timedelta(minutes=21),
            outcome=asdict(Outcome(people=people, left=1, returned=0, changed=2)),
        )


def _event(at: datetime, actor: User | None, action: str, target: Any, kind: str, **more: Any) -> AuditEvent:
    return AuditEvent(
        at=at,
        actor=actor,
        actor_name=actor.username if actor else "madoguchi",
        action=action,
        object_kind=kind,
        object_id=str(target.pk),
        object_name=tracking.name_of(target)[:200],
        **{"via": Via.PAGE if actor else Via.COMMAND, **more},
    )


def _address(chance: Random) -> str:
    return f"10.{chance.choice((20, 21, 22, 31))}.{chance.randrange(1, 60)}.{chance.randrange(2, 250)}"


def _key_events(chance: Random, holders: list[Holder]) -> list[AuditEvent]:
    events = []
    for holder in holders:
        for key in holder.keys:
            owner = key.user or key.created_by
            seen = {"name": key.name, "tenant": key.tenant.name, "prefix": key.prefix, "digest": "set"}
            if key.purpose:
                seen["purpose"] = key.purpose
            whose = {"user": str(key.user)} if key.user else {"service": key.service, "networks": key.networks}
            more: dict[str, Any] = {"tenant": key.tenant, "address": _address(chance)}
            events.append(_event(key.created_at, owner, "key.add", key, "key", after={**seen, **whose}, **more))
            if key.revoked_at:
                before = {"revoked_at": None, "revoked_because": ""}
                after = {"revoked_at": key.revoked_at, "revoked_because": key.revoked_because}
                events.append(
                    _event(key.revoked_at, owner, "key.revoke", key, "key", before=before, after=after, **more)
                )
    return events


def _model_events(chance: Random, now: datetime, staff: Staff, models: dict[str, ServedModel]) -> list[AuditEvent]:
    return [
        _event(
            now - timedelta(days=ago),
            chance.choice(staff.operators),
            action,
            models[name],
            "model",
            before=before,
            after=after,
            address=_address(chance),
        )
        for ago, action, name, before, after in DEEDS
    ]


def _quota_events(chance: Random, now: datetime, staff: Staff) -> list[AuditEvent]:
    events = []
    for quota in Quota.objects.select_related("tenant", "user", "key__tenant", "model"):
        tenant = quota.tenant or (quota.key.tenant if quota.key else None)
        slug = tenant.slug if tenant else ""
        by_operator = not tenant or not (quota.user or quota.default_for or quota.key)
        actor = chance.choice(staff.operators) if by_operator else staff.admin(slug)
        at = workdays.at_work(chance, now, chance.uniform(2, 89))
        after = {"unit": quota.unit, "window": quota.window, "amount": quota.amount}
        more: dict[str, Any] = {"tenant": tenant, "address": _address(chance)}
        if chance.random() < 0.4:
            before = {"amount": quota.amount // 2}
            events.append(
                _event(at, actor, "quota.change", quota, "quota", before=before, after={"amount": quota.amount}, **more)
            )
            at, after = at - timedelta(days=30), {**after, "amount": quota.amount // 2}
        events.append(_event(at, actor, "quota.add", quota, "quota", after=after, **more))
    return events


def write_sign_ins(
    chance: Random, now: datetime, visitors: list[Holder], others: Iterable[tuple[User, datetime]]
) -> None:
    """Write the sign-ins of people without a key of a program; `others` came only once."""
    known = {holder.user.pk: holder.user.last_login for holder in visitors if holder.user}
    events = _session_events(chance, now, visitors)
    for user, at in others:
        events.append(_event(at, user, "session.begin", user, "user", address=_address(chance)))
        user.last_login = at
    came = [holder.user for holder in visitors if holder.user]
    for visitor in came:
        before = known[visitor.pk]
        if before and (visitor.last_login is None or before > visitor.last_login):
            visitor.last_login = before
    people = [*came, *(user for user, _ in others)]
    User.objects.bulk_update(people, ["last_login"], batch_size=500)
    AuditEvent.objects.bulk_create(sorted(events, key=lambda event: event.at), batch_size=1000)


def _session_events(chance: Random, now: datetime, holders: list[Holder]) -> list[AuditEvent]:
    """Return the sign-ins: people look at their usage or need a new key, most every other week, some each day."""
    events = []
    for holder in holders:
        user = holder.user
        if user is None:
            continue
        address, last, ago = _address(chance), holder.since - timedelta(minutes=3), (now - holder.since).days
        events.append(_event(last, user, "session.begin", user, "user", address=address))
        while (ago := ago - 1 - int(chance.expovariate(1 / 16))) > 0:
            last = workdays.at_work(chance, now, ago)
            events.append(_event(last, user, "session.begin", user, "user", address=address))
        user.last_login = last
    User.objects.bulk_update([holder.user for holder in holders if holder.user], ["last_login"], batch_size=500)
    return events


def _membership_events(chance: Random, now: datetime) -> list[AuditEvent]:
    """Return the memberships that began within the quarter: manual ones by a page, the directory's by the command."""
    events = []
    begun = Membership.objects.filter(since__gte=now - timedelta(days=90)).select_related("user", "tenant")
    for membership in begun:
        by_hand = membership.source == Membership.Source.MANUAL
        admins = User.objects.filter(memberships__tenant=membership.tenant, memberships__role="admin")
        actor = admins.first() if by_hand else None
        after = {"user": str(membership.user), "tenant": membership.tenant.name, "role": membership.role}
        more: dict[str, Any] = {"tenant": membership.tenant, "address": _address(chance) if actor else None}
        events.append(_event(membership.since, actor, "membership.add", membership, "membership", after=after, **more))
    return events


def clear_unused_keys() -> None:
    """Remove the last address and program of keys that were never used."""
    ApiKey.objects.filter(last_used_at=None).update(last_used_from=None, last_used_with="")
