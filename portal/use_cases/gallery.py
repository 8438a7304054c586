"""Which use cases a person may see, change and publish; lists of them, and what is wrong with a case's model."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from django.db.models import Count, Exists, OuterRef, Prefetch, Q, QuerySet, Subquery

from modelregistry import routes
from modelregistry.models import Alias, ServedModel
from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.keys import model_access
from portal.keys.models import ModelAccess
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
    """Return the cases whose page a person may open: also those they wrote or have a draft of, or may publish.

    Who has left a tenant no longer reads what they wrote for it: what colleagues say about it goes on there.
    """
    if permissions.may_operate(user):
        known = UseCaseVersion.objects.filter(~Q(state=State.DRAFT) | Q(author=user), use_case=OuterRef("pk"))
        return UseCase.objects.filter(Exists(known))
    reachable = Q(is_company_wide=True) | Q(tenant__in=permissions.own_tenants(user))
    shown = Q(retired_at=None, current__isnull=False) & reachable
    drafts = UseCaseVersion.objects.filter(state=State.DRAFT, author=user, use_case=OuterRef("pk"))
    own = (Q(author=user) | Exists(drafts)) & reachable
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


def overtaken_versions(user: User) -> QuerySet[UseCaseVersion]:
    """Return what the person wrote in vain: of each case the newest of `kept_versions` if others have a newer one.

    That is one that is not a draft, by whichever author.
    """
    newer = UseCaseVersion.objects.filter(
        ~Q(state=State.DRAFT), use_case=OuterRef("use_case"), number__gt=OuterRef("number")
    )
    newer_kept = kept_versions(user).filter(use_case=OuterRef("use_case"), number__gt=OuterRef("number"))
    found = kept_versions(user).filter(Exists(newer), ~Exists(newer_kept), use_case__in=readable(user).values("pk"))
    return found.select_related("use_case", "author").prefetch_related("texts").order_by("-created_at")


def kept_versions(user: User) -> QuerySet[UseCaseVersion]:
    """Return the person's drafts, and their proposals that were replaced before anyone decided about them.

    Once the person has written a newer version of the case, such a proposal is history.
    """
    later = UseCaseVersion.objects.filter(use_case=OuterRef("use_case"), author=user, number__gt=OuterRef("number"))
    replaced = Q(state=State.REPLACED, decided_at=None) & ~Exists(later)
    return UseCaseVersion.objects.filter(Q(state=State.DRAFT) | replaced, author=user)


def waiting_versions(user: User) -> QuerySet[UseCaseVersion]:
    """Return the proposals that the person may decide, the oldest first."""
    found = UseCaseVersion.objects.filter(state=State.PROPOSED, use_case__retired_at=None)
    if not permissions.may_operate(user):
        mine = permissions.publishable_tenants(user)
        found = found.filter(use_case__tenant__in=mine, use_case__is_company_wide=False)
    return found.select_related("use_case__tenant", "author").prefetch_related("texts").order_by("created_at")


def hidden_cases(user: User) -> QuerySet[UseCase]:
    """Return the hidden cases that the person may show again, but what its author withdrew before publication."""
    found = UseCase.objects.exclude(retired_at=None).exclude(current=None, hidden_by_author=True)
    found = found.filter(pk__in=readable(user).values("pk"))
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

    Its `own_kept` is the number of the newest of this person's `kept_versions`, be it an older one.
    """
    found = versions_for(reader, case).select_related("author", "decided_by").prefetch_related("texts")
    kept = kept_versions(reader).filter(use_case=case).order_by("-number").values("number")
    return found.annotate(own_kept=Subquery(kept[:1])).order_by("number").last()


def find_proposal(case: UseCase) -> UseCaseVersion | None:
    """Return the version that waits for a decision, be there newer drafts."""
    found = case.versions.filter(state=State.PROPOSED).select_related("author", "decided_by")
    return found.prefetch_related("texts").order_by("number").last()


def find_overtaken(newest: UseCaseVersion) -> int | None:
    """Return the number of what the person wrote before this version, which `newest_version` gave: `kept_versions`."""
    kept: int | None = newest.own_kept  # type: ignore[attr-defined]
    return kept if kept is not None and kept < newest.number else None


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


def names_for(user: User) -> frozenset[str]:
    """Return the names and aliases of the chat models that the person may know of. Two or three queries."""
    return frozenset(_ids_by_name(model_access.offered_to(user)))


def _ids_by_name(served: QuerySet[ServedModel]) -> dict[str, int]:
    """Return the ids of those of these models that chat, by their names and aliases. Two queries."""
    chat = served.filter(task=ServedModel.Task.CHAT)
    return dict([*chat.values_list("name", "pk"), *Alias.objects.filter(model__in=chat).values_list("name", "model")])


def find_flags(cases: Iterable[UseCase]) -> dict[int, str]:
    """Return what is wrong with the published versions of the cases, by their ids, as `find_flag`. Four queries."""
    return _flags([(case, case.current) for case in cases if case.current is not None])


def find_flag(case: UseCase, version: UseCaseVersion) -> str:
    """Return what is wrong with a version, for those who publish it.

    "gone": there is no such model; "closed": not everyone who sees the case may call it; else an outcome of the last
    check; "": nothing. Four queries.
    """
    return _flags([(case, version)]).get(case.pk, "")


def _flags(shown: Sequence[tuple[UseCase, UseCaseVersion]]) -> dict[int, str]:
    ids = _ids_by_name(routes.offered_models())
    allowed: dict[int, set[int]] = defaultdict(set)
    for model, tenant in ModelAccess.objects.values_list("model", "tenant"):
        allowed[model].add(tenant)
    checks = UseCaseCheck.objects.filter(version__in=[version.pk for _, version in shown])
    failed = checks.exclude(outcome__in=("", UseCaseCheck.Outcome.FINE))
    flags = dict(failed.values_list("use_case_id", "outcome"))
    for case, version in shown:
        if not version.model:
            continue
        if version.model not in ids:
            flags[case.pk] = "gone"
        elif (only := allowed.get(ids[version.model])) and (case.is_company_wide or case.tenant_id not in only):
            flags[case.pk] = "closed"
    return flags
