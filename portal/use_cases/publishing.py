"""The life of a use case: saved, proposed, published or returned, hidden.

Each verb is one transaction with its audit event and its notices, and begins with who may. A saved version that was
proposed never changes again: an edit makes a new one, and what people see remains the published one until then.
"""

from collections.abc import Iterable

from django.db import transaction
from django.db.models import Max
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.audit import tracking
from portal.use_cases.content import UseCaseContent, UseCaseRefused, check_content, content_of
from portal.use_cases.gallery import Publisher, find_proposal, versions_for
from portal.use_cases.models import MAX_NOTE, UseCase, UseCaseText, UseCaseVersion, join_departments
from portal.web.notify import notify
from portal.web.row_locks import lock_row
from portal.web.templatetags.formatting import person

State = UseCaseVersion.State
# Drafts and proposals of one person at a time: a script that runs wild would bury those of others.
MOST_OPEN = 50
MOST_UNPUBLISHED = 200  # with hidden ones, which are kept


class UseCaseChanged(UseCaseRefused):
    """There is a newer version than the one that the person has seen."""


class UseCaseForbidden(UseCaseRefused):
    """Another person may do this."""

    allowed = False


def create_case(by: User, tenant: Tenant | None, content: UseCaseContent) -> UseCaseVersion:
    """Save a new case as a draft of this tenant; without one, which only operators may, it is the company's."""
    check_content(content)
    allowed = permissions.may_operate(by) or (tenant and permissions.own_tenants(by).filter(pk=tenant.pk).exists())
    if not allowed:
        raise UseCaseForbidden(_("Choose one of your own tenants."))
    with transaction.atomic():
        lock_row(User, by.pk)
        check_open(by, by=by)
        if count_unpublished(by) >= MOST_UNPUBLISHED:
            sentence = _(
                "You have %(most)d use cases that were never published, with those you have hidden, the most there may "
                "be. Change one of these instead."
            )
            raise UseCaseRefused(sentence % {"most": MOST_UNPUBLISHED}, code="many")
        case = UseCase.objects.create(name=content.name, tenant=tenant, author=by, is_company_wide=tenant is None)
        version = write_version(case, content, number=1, author=by)
        record(case, "add")
    return version


def save_version(by: User, case: UseCase, content: UseCaseContent, *, seen: int | None = None) -> UseCaseVersion:
    """Save an edit as a draft. The person's own draft is changed, everything else gets a newer version.

    A draft replaces nothing: a proposal waits until a newer version is itself proposed or published. Drafts of others
    stay as they are: they are not known to this person. So does the person's own draft over which others have
    published: what is replaced, others read in the history.

    `seen`: the number of the version that was edited. Raises UseCaseChanged if it is no longer the newest.
    """
    check_content(content)
    with transaction.atomic():
        case = lock_case(case)
        if not Publisher(by).may_edit(case):
            raise UseCaseForbidden(_("You may not change this use case."))
        known = versions_for(by, case)
        newest = known.order_by("number").last()
        check_seen(newest, seen)
        if newest is not None and newest.state == State.DRAFT:
            newest.delete()
            number = newest.number
        else:
            number = next_number(case)
        if not case.versions.exclude(state=State.DRAFT).exists():  # else others would read the title of a draft
            case.name = content.name
            case.save(update_fields=["name"])
        version = write_version(case, content, number=number, author=by)
        record_values(case, "change", {"version": number})
    return version


def discard_draft(by: User, case: UseCase, number: int) -> None:
    """Delete a draft of the person's own for good, be it an older version; there must be another version.

    Raises UseCaseRefused.
    """
    with transaction.atomic():
        case = lock_case(case)
        known = versions_for(by, case)
        draft = known.filter(number=number, state=State.DRAFT, author=by).first()
        if draft is None:
            raise UseCaseRefused(_("You have no such draft. You may have proposed or discarded it."), code="state")
        left = known.exclude(pk=draft.pk).order_by("number").last()
        if left is None:
            raise UseCaseRefused(_("The use case has no other version. Hide the use case instead."), code="only")
        draft.delete()
        if case.current_id is None:
            case.name = content_of(left).name
            case.save(update_fields=["name"])
        record_values(case, "discarded", {"version": number})


def may_discard(by: User, version: UseCaseVersion) -> bool:
    """Return whether `discard_draft` deletes this version. One query at most."""
    if version.state != State.DRAFT or version.author_id != by.pk:
        return False
    return versions_for(by, version.use_case).exclude(pk=version.pk).exists()


def write_version(
    case: UseCase,
    content: UseCaseContent,
    *,
    number: int,
    author: User | None,
    state: str = State.DRAFT,
    starter_sum: str = "",
) -> UseCaseVersion:
    """Store a version with its texts, within the caller's transaction."""
    version = UseCaseVersion.objects.create(
        use_case=case,
        number=number,
        author=author,
        state=state,
        kind=content.kind,
        departments=join_departments(content.departments),
        model=content.model,
        starter_sum=starter_sum,
    )
    UseCaseText.objects.bulk_create(
        UseCaseText(
            version=version,
            language=text.language,
            title=text.title,
            summary=text.summary,
            system=text.system,
            prompt=text.prompt,
            expected_input=text.expected_input,
            example_answer=text.example_answer,
            variables=[one.to_json() for one in text.variables],
        )
        for text in content.texts
    )
    return version


def propose(by: User, case: UseCase) -> None:
    """Propose the person's draft to those who decide, and notify them."""
    with transaction.atomic():
        case, version = lock_newest(by, case)
        if version.state != State.DRAFT:
            raise UseCaseRefused(_("There is nothing new to propose."), code="state")
        if not Publisher(by).may_edit(case):
            raise UseCaseForbidden(_("You may not change this use case."))
        if case.versions.filter(number__gt=version.number).exists():
            # Drafts that others began later. What is proposed comes before them for those who decide.
            version.number = next_number(case)
        replace_others(case, version, by, State.PROPOSED)
        version.state = State.PROPOSED
        version.save(update_fields=["number", "state"])
        if case.current_id is None:
            case.name = content_of(version).name
            case.save(update_fields=["name"])
        record(case, "proposed", version)
        others = [person for person in deciders(case) if person.pk != by.pk]
        notify(
            *(others, "use-case-proposed", ref_of(version)),
            path=path_of(case),
            title=content_of(version).name,
            by=str(by),
        )


def publish(by: User, case: UseCase, *, company_wide: bool = False, seen: int | None = None) -> UseCaseVersion:
    """Publish the newest version, or with `company_wide` the one that is published already to everyone.

    `seen`: the number of the version that the person decides about, see `lock_decided`.
    """
    with transaction.atomic():
        case, version = lock_decided(by, case, seen)
        if not Publisher(by).may_publish(case) or (company_wide and not permissions.may_operate(by)):
            raise UseCaseForbidden(_("You may not publish this use case."))
        if version.state == State.PUBLISHED and not (company_wide and not case.is_company_wide):
            raise UseCaseRefused(_("This version is published already."), code="state")
        if version.state not in (State.PROPOSED, State.PUBLISHED) and version.author_id != by.pk:
            raise UseCaseRefused(_("This version has not been proposed."), code="state")
        decide(version, State.PUBLISHED, by)
        replace_others(case, version, by, State.PUBLISHED)
        case.current, case.published_at, case.retired_at = version, timezone.now(), None
        case.hidden_by_author = False
        case.name = content_of(version).name
        case.is_company_wide = case.is_company_wide or company_wide
        case.save(
            update_fields=["name", "current", "published_at", "retired_at", "hidden_by_author", "is_company_wide"]
        )
        record(case, "published", version)
        notify_author(case, version, by, "use-case-published")
    return version


def send_back(by: User, case: UseCase, note: str, *, seen: int | None = None) -> None:
    """Return a proposal to its author, with a comment. `seen` as for `publish`."""
    note = note.strip()
    if not note:
        raise UseCaseRefused(_("Write a comment, so that the author knows what to change."), code="note")
    if len(note) > MAX_NOTE:
        raise UseCaseRefused(_("A comment has at most %(most)d characters.") % {"most": MAX_NOTE}, code="note")
    with transaction.atomic():
        case, version = lock_decided(by, case, seen)
        if not Publisher(by).may_publish(case):
            raise UseCaseForbidden(_("You may not decide about this use case."))
        if version.state != State.PROPOSED:
            raise UseCaseRefused(_("This version has not been proposed."), code="state")
        decide(version, State.RETURNED, by, note)
        record(case, "returned", version)
        notify_author(case, version, by, "use-case-returned", note=note)


def hide(by: User, case: UseCase) -> None:
    """Take a case off the gallery. Its texts, marks and comments are kept; its author may do it before publication.

    Its author is notified of it, if that is another person.
    """
    with transaction.atomic():
        case = lock_case(case)
        own_draft = case.author_id == by.pk and case.current_id is None
        if not (own_draft or Publisher(by).may_publish(case)):
            raise UseCaseForbidden(_("You may not hide this use case."))
        was_shown = case.retired_at is None
        case.hidden_by_author = case.author_id == by.pk and (was_shown or case.hidden_by_author)
        case.retired_at = timezone.now()
        case.save(update_fields=["retired_at", "hidden_by_author"])
        record(case, "hidden")
        if was_shown and case.author is not None and case.author.pk != by.pk:
            ref = f"{case.pk} {case.retired_at:%Y%m%d%H%M%S}"
            notify([case.author], "use-case-hidden", ref, path=path_of(case), title=case.name, by=str(by))


def show_again(by: User, case: UseCase) -> None:
    """Put a hidden case back where it was. Its author does that where they hid it themselves."""
    with transaction.atomic():
        case = lock_case(case)
        if not may_show_again(Publisher(by), case):
            raise UseCaseForbidden(_("You may not publish this use case."))
        if case.current_id is None and case.retired_at is not None and case.author is not None:
            lock_row(User, case.author.pk)
            check_open(case.author, by=by)
        case.retired_at, case.hidden_by_author = None, False
        case.save(update_fields=["retired_at", "hidden_by_author"])
        record(case, "shown")


def may_show_again(publisher: Publisher, case: UseCase) -> bool:
    """Return whether `show_again` lets this person. Of a case that is not hidden it changes nothing."""
    own_draft = case.author_id == publisher.user.pk and case.current_id is None
    hidden_by_others = case.retired_at is not None and not case.hidden_by_author
    return (own_draft and not hidden_by_others) or publisher.may_publish(case)


# --- their parts


def lock_case(case: UseCase) -> UseCase:
    """Return the case as it is now; others that would change it wait for the end of this transaction."""
    locked = UseCase.objects.select_for_update(of=("self",)).select_related("tenant").filter(pk=case.pk).first()
    if locked is None:
        raise UseCaseRefused(_("This use case is not there any more."), code="gone")
    return locked


def lock_newest(by: User, case: UseCase) -> tuple[UseCase, UseCaseVersion]:
    """Return the case, locked, and the newest version that this person may know of."""
    case = lock_case(case)
    version = versions_for(by, case).select_related("author").order_by("number").last()
    if version is None:
        raise UseCaseRefused(_("This use case has no text."), code="gone")
    return case, version


def lock_decided(by: User, case: UseCase, seen: int | None) -> tuple[UseCase, UseCaseVersion]:
    """Return the case, locked, and the version that the person decides about, whose number they have seen.

    That is the proposal that waits, also where they have begun a draft over it, or the newest version that they may
    know of. Raises UseCaseChanged for any other: its author may propose another one meanwhile.
    """
    case, newest = lock_newest(by, case)
    waiting = find_proposal(case)
    if waiting is not None and waiting.number == seen:
        return case, waiting
    check_seen(newest, seen)
    return case, newest


def next_number(case: UseCase) -> int:
    return 1 + (case.versions.aggregate(most=Max("number"))["most"] or 0)


def check_seen(newest: UseCaseVersion | None, seen: int | None) -> None:
    """Raise UseCaseChanged if the newest version is not the one that was seen; None: it does not matter."""
    if seen is not None and (newest is None or newest.number != seen):
        raise UseCaseChanged(_("There is a newer version meanwhile. Look at it first."), code="changed")


def check_open(author: User, *, by: User) -> None:
    """Raise UseCaseRefused if the author, whose row is locked, has as many open cases as allowed."""
    if count_unpublished(author, retired_at=None) < MOST_OPEN:
        return
    if author.pk == by.pk:
        sentence = _("You have %(most)d use cases that are not published, the most there may be. Finish or hide some.")
        raise UseCaseRefused(sentence % {"most": MOST_OPEN}, code="many")
    sentence = _(
        "%(person)s has %(most)d use cases that are not published, the most there may be. Publish or hide one of these."
    )
    raise UseCaseRefused(sentence % {"most": MOST_OPEN, "person": person(author)}, code="many-of-author")


def count_unpublished(author: User, **which: None) -> int:
    """Return how many cases of this person were never published, or of those which."""
    return UseCase.objects.filter(author=author, current=None, **which).count()


def decide(version: UseCaseVersion, state: str, by: User | None, note: str = "") -> None:
    version.state, version.decided_by, version.decided_at, version.note = state, by, timezone.now(), note
    version.save(update_fields=["state", "decided_by", "decided_at", "note"])


def record(case: UseCase, verb: str, version: UseCaseVersion | None = None) -> None:
    after = {"version": version.number, "company_wide": case.is_company_wide} if version else None
    record_values(case, verb, after)


def record_values(case: UseCase, verb: str, after: dict[str, int | bool] | None) -> None:
    event = f"use-case.{verb}"
    tracking.record_event(event, case, "use-case", after=after, tenant=case.tenant, name=name_for_others(case))


def name_for_others(case: UseCase) -> str:
    """Return what the audit log calls the case: the title of a draft is its author's alone."""
    if case.current_id is not None:
        return str(case)
    shown = case.versions.exclude(state=State.DRAFT).order_by("number").last()
    return f"#{case.pk} {content_of(shown).name}" if shown else f"#{case.pk}"


def deciders(case: UseCase) -> Iterable[User]:
    """Return who decides about a case: its tenant's champions and admins, or else operators."""
    found = [] if case.tenant is None or case.is_company_wide else list(permissions.publishers_of(case.tenant))
    return found or permissions.operators()


def notify_author(case: UseCase, version: UseCaseVersion, by: User, kind: str, **facts: str) -> None:
    if version.author is not None and version.author.pk != by.pk:
        ref = f"{ref_of(version)} {version.decided_at:%Y%m%d%H%M%S}"
        notify([version.author], kind, ref, path=path_of(case), title=content_of(version).name, by=str(by), **facts)


def replace_others(case: UseCase, version: UseCaseVersion, by: User, state: str) -> None:
    """Replace what this version, which becomes proposed or published, comes before; notify who proposed another."""
    replaced = [State.PROPOSED, State.PUBLISHED] if state == State.PUBLISHED else [State.PROPOSED]
    for other in case.versions.select_related("author").filter(state__in=replaced).exclude(pk=version.pk):
        if other.state == State.PROPOSED:
            notify_overtaken(case, other, by, state)
        other.state = State.REPLACED
        other.save(update_fields=["state"])


def notify_overtaken(case: UseCase, version: UseCaseVersion, by: User, state: str) -> None:
    """Notify the author of a proposal that this person has proposed or published, by `state`, another one."""
    if version.author is None or version.author.pk == by.pk:
        return
    path = f"{path_of(case)}?version=mine"
    facts = {"title": content_of(version).name, "by": str(by), "state": state}
    notify([version.author], "use-case-replaced", ref_of(version), path=path, **facts)


def ref_of(version: UseCaseVersion) -> str:
    return f"{version.use_case_id} v{version.number}"


def path_of(case: UseCase) -> str:
    return reverse("use-case", args=[case.pk])
