"""Which use cases a person may see, change and publish; lists of them, and what is wrong with a case's model."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from django.db.models import Count, Exists, F, OuterRef, Prefetch, Q, QuerySet, Subquery

from modelregistry import routes
from modelregistry.models import Alias, ServedModel
from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.use_cases.models import UseCase, UseCaseCheck, UseCaseText, UseCaseVersion

State = UseCaseVersion.State

SORTS = ("helpful", "used", "new")
ORDERS = {
    "helpful": ("-helped", "-tried", "-pk"),
    "used": ("-tried", "-opened", "-pk"),
    "new": ("-published_at", "-pk"),
}
MOST_WORDS = 5  # of a search
OPEN = (State.DRAFT, State.PROPOSED, State.RETURNED)


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryQuery:
    """What is looked for; empty fields match everything."""

    text: str = ""
    department: str = ""
    kind: str = ""
    language: str = ""
    sort: str = SORTS[0]

    @property
    def is_filtered(self) -> bool:
        return bool(self.text or self.department or self.kind or self.language)


def visible(user: User) -> QuerySet[UseCase]:
    """Return the published cases that a person may see: of the whole company and of their tenants, operators all."""
    found = UseCase.objects.filter(retired_at=None).exclude(current=None)
    if permissions.may_operate(user):
        return found
    return found.filter(Q(is_company_wide=True) | Q(tenant__in=permissions.own_tenants(user)))


def readable(user: User) -> QuerySet[UseCase]:
    """Return the cases whose page a person may open: also their own, and those that they may publish.

    Who has left a tenant no longer reads what they wrote for it: what colleagues say about it goes on there.
    """
    if permissions.may_operate(user):
        known = UseCaseVersion.objects.filter(~Q(state=State.DRAFT) | Q(author=user), use_case=OuterRef("pk"))
        return UseCase.objects.filter(Exists(known))
    reachable = Q(is_company_wide=True) | Q(tenant__in=permissions.own_tenants(user))
    shown = Q(retired_at=None, current__isnull=False) & reachable
    own = Q(author=user) & reachable
    decided = Q(versions__state__in=(State.PROPOSED, State.PUBLISHED))
    decided &= Q(tenant__in=permissions.publishable_tenants(user))
    decidable = UseCase.objects.filter(decided).values("pk")
    return UseCase.objects.filter(shown | own | Q(pk__in=decidable))


def readable_ids(user: User, ids: Iterable[int | None]) -> frozenset[int]:
    """Return those of these ids that are of cases whose page the person may open. One query."""
    return frozenset(readable(user).filter(pk__in={pk for pk in ids if pk}).values_list("pk", flat=True))


def with_texts(cases: QuerySet[UseCase]) -> QuerySet[UseCase]:
    """Return the same cases with what a list of them shows, in two queries however many there are."""
    texts = Prefetch("current__texts", UseCaseText.objects.defer("prompt", "system", "example_answer"))
    return cases.select_related("current", "tenant", "author").prefetch_related(texts)


def search(cases: QuerySet[UseCase], query: GalleryQuery) -> QuerySet[UseCase]:
    """Return the cases that match, in the order of the query."""
    for word in query.text.split()[:MOST_WORDS]:
        said = UseCaseText.objects.filter(version=OuterRef("current"))
        said = said.filter(Q(title__icontains=word) | Q(summary__icontains=word))
        cases = cases.filter(Exists(said))
    if query.department:
        cases = cases.filter(current__departments__contains=f",{query.department},")
    if query.kind:
        cases = cases.filter(current__kind=query.kind)
    if query.language:
        texts = UseCaseText.objects.filter(version=OuterRef("current"), language=query.language)
        cases = cases.filter(Exists(texts))
    return cases.order_by(*ORDERS[query.sort])


def own_versions(user: User) -> QuerySet[UseCaseVersion]:
    """Return the newest version of each case that the person proposed, if it is not simply published.

    Also of the cases of others to which it is this person's edit.
    """
    known = UseCaseVersion.objects.filter(~Q(state=State.DRAFT) | Q(author=user))
    newer = known.filter(use_case=OuterRef("use_case"), number__gt=OuterRef("number"))
    found = known.filter(
        ~Exists(newer),
        Q(use_case__author=user) | Q(author=user),
        use_case__in=readable(user).values("pk"),
        state__in=OPEN,
    )
    return found.select_related("use_case", "author").prefetch_related("texts").order_by("-created_at")


def overtaken_drafts(user: User) -> QuerySet[UseCaseVersion]:
    """Return the person's newest drafts of cases of which others have made a newer version that is not a draft."""
    newer = UseCaseVersion.objects.filter(
        ~Q(state=State.DRAFT), use_case=OuterRef("use_case"), number__gt=OuterRef("number")
    )
    newer_drafts = UseCaseVersion.objects.filter(
        use_case=OuterRef("use_case"), author=user, state=State.DRAFT, number__gt=OuterRef("number")
    )
    found = UseCaseVersion.objects.filter(
        Exists(newer), ~Exists(newer_drafts), author=user, state=State.DRAFT, use_case__in=readable(user).values("pk")
    )
    return found.select_related("use_case", "author").prefetch_related("texts").order_by("-created_at")


def waiting_versions(user: User) -> QuerySet[UseCaseVersion]:
    """Return the proposals that the person may decide, the oldest first."""
    found = UseCaseVersion.objects.filter(state=State.PROPOSED, use_case__retired_at=None)
    if not permissions.may_operate(user):
        mine = permissions.publishable_tenants(user)
        found = found.filter(use_case__tenant__in=mine, use_case__is_company_wide=False)
    return found.select_related("use_case__tenant", "author").prefetch_related("texts").order_by("created_at")


def hidden_cases(user: User) -> QuerySet[UseCase]:
    """Return the hidden cases that the person may show again."""
    found = UseCase.objects.exclude(retired_at=None).exclude(current=None)
    if not permissions.may_operate(user):
        found = found.filter(tenant__in=permissions.publishable_tenants(user), is_company_wide=False)
    return with_texts(found.order_by("-retired_at"))


def last_check(case: UseCase) -> UseCaseCheck | None:
    return UseCaseCheck.objects.filter(use_case=case).select_related("version").first()


def versions_for(reader: User, case: UseCase) -> QuerySet[UseCaseVersion]:
    """Return the versions without the drafts of other people: before it is proposed, a text is its author's alone."""
    return case.versions.filter(~Q(state=State.DRAFT) | Q(author=reader))


def newest_version(reader: User, case: UseCase) -> UseCaseVersion | None:
    """Return the newest version that this person may know of; None: there are only drafts of others.

    Its `own_draft` is the number of the newest draft of this person's own, be it an older one.
    """
    found = versions_for(reader, case).select_related("author", "decided_by").prefetch_related("texts")
    drafts = case.versions.filter(state=State.DRAFT, author=reader).order_by("-number").values("number")
    return found.annotate(own_draft=Subquery(drafts[:1])).order_by("number").last()


def find_overtaken(newest: UseCaseVersion) -> int | None:
    """Return the number of the person's own draft that is older than this version, which `newest_version` gave."""
    draft: int | None = newest.own_draft  # type: ignore[attr-defined]
    return draft if draft is not None and draft < newest.number else None


def most_helpful(user: User, most: int = 3) -> list[UseCase]:
    """Return the cases that helped most members of the person's tenants; where none did, the company's. Two queries."""
    tenants = permissions.own_tenants(user).values("pk")
    colleagues = Count("marks", filter=Q(marks__user__memberships__tenant__in=tenants), distinct=True)
    found = visible(user).annotate(colleagues=colleagues).order_by("-colleagues", "-helped", "-tried", "-pk")
    return list(with_texts(found)[:most])


# --- rights


@dataclass
class Publisher:
    """What a person may decide. Reads the tenants that they publish for once."""

    user: User
    is_operator: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_operator = permissions.may_operate(self.user)

    @cached_property
    def tenants(self) -> frozenset[int]:
        """The ids of the tenants that a person who is no operator publishes for."""
        return frozenset(permissions.publishable_tenants(self.user).values_list("pk", flat=True))

    @cached_property
    def own_tenants(self) -> frozenset[int]:
        """The ids of the tenants that the person belongs to."""
        return frozenset(permissions.own_tenants(self.user).values_list("pk", flat=True))

    @property
    def is_any(self) -> bool:
        """Whether there is any case that the person could publish."""
        return self.user.is_active and (self.is_operator or bool(self.tenants))

    def may_publish(self, case: UseCase) -> bool:
        """Return whether the person decides about this case: what the whole company sees, only operators do."""
        if self.is_operator:
            return True
        return self.user.is_active and not case.is_company_wide and case.tenant_id in self.tenants

    def may_edit(self, case: UseCase) -> bool:
        """Return whether the person may make a new version: the author may, also where others decide about it."""
        mine = case.author_id == self.user.pk and self.user.is_active
        mine = mine and (case.is_company_wide or case.tenant_id in self.own_tenants)
        return mine or self.is_operator or case.tenant_id in self.tenants


def tenants_to_propose_for(user: User) -> QuerySet[Tenant]:
    return permissions.own_tenants(user).order_by("name")


# --- models


def callable_names() -> frozenset[str]:
    """Return the names and aliases of the chat models that are offered. Two queries."""
    chat = routes.offered_models().filter(task=ServedModel.Task.CHAT)
    aliases = Alias.objects.filter(model__in=chat).values_list("name", flat=True)
    return frozenset([*chat.values_list("name", flat=True), *aliases])


def find_flags(cases: Iterable[UseCase]) -> dict[int, str]:
    """Return what is wrong with the cases, by their ids: "gone" for a model, or an outcome of the last check.

    For those who publish. Three queries.
    """
    names = callable_names()
    cases = [case for case in cases if case.current is not None]
    checks = UseCaseCheck.objects.filter(use_case__in=[case.pk for case in cases], version=F("use_case__current"))
    failed = checks.exclude(outcome__in=("", UseCaseCheck.Outcome.FINE))
    flags = dict(failed.values_list("use_case_id", "outcome"))
    for case in cases:
        model = case.current.model if case.current else ""
        if model and model not in names:
            flags[case.pk] = "gone"
    return flags
