"""Write the keys of people and services: who began to use the system when, and which key followed an expired one.

The text of each is made as for any key and discarded, so no one can call with it. It must not follow from the seed.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant, User
from portal.demo import workdays
from portal.demo.plan import DEPARTMENTS, SERVICES, Department, Service
from portal.demo.staff import ADMIN, EMPLOYEE, OPERATOR, Staff
from portal.keys.models import ApiKey, ManagementKey
from portal.usage import client_classes

NAMES = (
    "ノート PC",
    "社用 PC",
    "VS Code",
    "自分用",
    "Python スクリプト",
    "Excel マクロ",
    "検証用",
    "Jupyter",
    "Continue",
)
PURPOSES = (
    *("", "", ""),
    *("議事録の要約", "メールの下書き", "資料の翻訳", "コードの補完", "データ整形のスクリプト", "マニュアルの下書き"),
)
CLIENTS = ("OpenAI/Python", "OpenAI/JS", "curl", "Continue", "Dify", "python-httpx", "Cline")
# What calls with a person's key, by its name; else one of OFTEN.
CLASSES = {
    "Python スクリプト": client_classes.OPENAI,
    "Jupyter": client_classes.OPENAI,
    "VS Code": "cline",
    "Continue": "continue",
    "Excel マクロ": client_classes.OTHER,
}
OFTEN = (
    client_classes.OPEN_WEBUI,
    client_classes.OPEN_WEBUI,
    client_classes.OPENAI,
    client_classes.DIFY,
    "claude-code",
)
NETWORKS = ("10.20", "10.21", "10.22", "10.24", "10.31", "172.20")
SCRIPTS = (
    ("月次レポート", ("usage:read",)),
    ("監視（Zabbix）", ("usage:read", "catalogue:read")),
    ("キーの棚卸し", ("keys:read", "tenants:read")),
)
REASONS = ("PC を交換したため", "使わなくなったため", "チャットに貼り付けてしまったため", "退職のため")


@dataclass(slots=True)
class Holder:
    """A caller: a person (`user`) or a service, with one key after the other."""

    department: Department
    keys: list[ApiKey]
    user: User | None = None
    service: Service | None = None
    heavy: float = 1.0  # times the usual number of calls
    mix: dict[str, int] | None = None  # of models; None: the department's or the service's

    @property
    def since(self) -> datetime:
        return self.keys[0].created_at

    def key_at(self, at: datetime) -> ApiKey | None:
        """Return the key that worked at this time."""
        for key in reversed(self.keys):
            if key.created_at <= at:
                ended = min(key.expires_at or at + timedelta(1), key.revoked_at or at + timedelta(1))
                return key if at < ended else None
        return None


def client_class_of(key: ApiKey) -> str:
    """Return the class of programs that call with this key (see `client_classes`)."""
    if key.is_playground:
        return client_classes.BROWSER
    for name, code in (("Dify", client_classes.DIFY), ("WebUI", client_classes.OPEN_WEBUI)):
        if name in key.name:
            return code
    if key.user_id is None:
        return client_classes.OPENAI
    return CLASSES.get(key.name) or OFTEN[key.user_id % len(OFTEN)]


def create_keys(chance: Random, now: datetime, staff: Staff, models: dict[str, ServedModel], days: int) -> list[Holder]:
    """Create all API keys; return their holders."""
    holders = _personal(chance, now, staff, days) + _services(chance, now, staff)
    keys = [key for holder in holders for key in holder.keys]
    born = [(key.created_at, key) for key in keys]
    ApiKey.objects.bulk_create(keys, batch_size=500)
    for created_at, key in born:  # bulk_create has written the current time
        key.created_at = created_at
    ApiKey.objects.bulk_update(keys, ["created_at"], batch_size=200)
    _link_successors(holders)
    through = ApiKey.allowed_models.through
    narrow = [
        (key, holder.service) for holder in holders if holder.service for key in holder.keys if not key.every_model
    ]
    through.objects.bulk_create(
        through(apikey_id=key.pk, servedmodel_id=models[name].pk) for key, service in narrow for name in service.mix
    )
    return holders


def _personal(chance: Random, now: datetime, staff: Staff, days: int) -> list[Holder]:
    holders = []
    for department in DEPARTMENTS:
        tenant = staff.tenants[department.slug]
        for user in staff.members[department.slug]:
            guest = user.username in (EMPLOYEE, ADMIN, OPERATOR)
            if not guest and chance.random() > department.adoption:
                continue
            # Few were there before; most came by word of mouth, more each month, as an S-curve has it.
            ago = days + chance.randrange(5, 60) if guest or chance.random() < 0.22 else draw_joining(chance, days)
            heavy = 4.0 if guest else min(18.0, chance.lognormvariate(-0.35, 0.95))
            keys = _chain(chance, now, tenant, user, workdays.at_work(chance, now, ago), chance.choice(NAMES))
            holders.append(Holder(department, keys, user=user, heavy=heavy))
            if chance.random() < 0.09 * (1 + heavy):  # a second one, for another machine
                since = workdays.at_work(chance, now, chance.uniform(1, ago))
                other = chance.choice([name for name in NAMES if name != keys[0].name])
                more = _chain(chance, now, tenant, user, since, other)
                holders.append(Holder(department, more, user=user, heavy=heavy * 0.5))
    return holders


def draw_joining(chance: Random, days: int) -> int:
    """Return how many days ago a person began. Most did in the second third of the time."""
    return max(1, min(days - 1, round(chance.gauss(0.52, 0.24) * days)))


def _chain(chance: Random, now: datetime, tenant: Tenant, user: User, since: datetime, name: str) -> list[ApiKey]:
    """Return a key and those that followed when it expired: most people make a new one within some days."""
    purpose, valid = chance.choice(PURPOSES), tenant.key_days
    keys: list[ApiKey] = []
    while since < now:
        expires = since + timedelta(days=valid) if valid else None
        key = make_key(chance, tenant, since, expires, user=user, name=name, purpose=purpose, created_by=user)
        keys.append(key)
        if chance.random() < 0.05:
            revoked = since + timedelta(days=chance.uniform(2, 60))
            if revoked < now and (expires is None or revoked < expires):
                key.revoked_at, key.revoked_because = revoked, chance.choice(REASONS)
        ended = key.revoked_at or expires
        if ended is None or chance.random() < 0.12:
            break
        since = ended + timedelta(days=chance.choice((-3, -2, -1, 0, 0, 1, 4)))
        key.expires_at = expires
    return keys


def _services(chance: Random, now: datetime, staff: Staff) -> list[Holder]:
    departments = {department.slug: department for department in DEPARTMENTS}
    holders = []
    for service in SERVICES:
        tenant, people = staff.tenants[service.tenant], staff.members[service.tenant]
        responsible = people[chance.randrange(min(len(people), 5))]
        key = make_key(
            chance,
            tenant,
            workdays.at_work(chance, now, service.since),
            None if service.batch else now + timedelta(days=chance.choice((5, 24, 90, 200))),
            service=service.service,
            name=service.name,
            purpose=service.purpose,
            networks=list(service.networks),
            takes_user_headers=service.service == "Open WebUI",
            key_class=ApiKey.Class.BATCH if service.batch else ApiKey.Class.INTERACTIVE,
            responsible=responsible,
            created_by=people[0],
            every_model=False,
        )
        holders.append(Holder(departments[service.tenant], [key], service=service))
    return holders


def make_key(chance: Random, tenant: Tenant, created: datetime, expires: datetime | None, **more: object) -> ApiKey:
    """Return a key that is not stored."""
    network = chance.choice(NETWORKS)
    key = ApiKey(
        tenant=tenant,
        created_at=created,
        expires_at=expires,
        last_used_from=f"{network}.{chance.randrange(1, 60)}.{chance.randrange(2, 250)}",
        last_used_with=chance.choice(CLIENTS),
        **more,
    )
    key.assign_text()
    return key


def create_management_keys(chance: Random, now: datetime, staff: Staff) -> None:
    """Create keys for people who automate: operators, and people of the two departments that write programs."""
    programmers = [*staff.operators, *staff.members["aoba-software"][:4], *staff.members["dx-promotion"][:2]]
    rows = []
    for user in dict.fromkeys(programmers):
        name, scopes = chance.choice(SCRIPTS)
        created = now - timedelta(days=chance.uniform(8, 70))
        key = ManagementKey(
            user=user,
            name=name,
            scopes=list(scopes),
            expires_at=created + timedelta(days=365),
            last_used_at=now - timedelta(hours=chance.uniform(0.2, 60)),
        )
        key.assign_text()
        rows.append(key)
    ManagementKey.objects.bulk_create(rows)


def _link_successors(holders: list[Holder]) -> None:
    """Store which key replaced which; not before the keys have primary keys."""
    changed = []
    for holder in holders:
        for before, after in zip(holder.keys, holder.keys[1:], strict=False):
            after.replaces = before
            changed.append(after)
    ApiKey.objects.bulk_update(changed, ["replaces"], batch_size=200)
