"""The life of a use case: who may do what with it, what others see meanwhile, and who is notified."""

import importlib

import pytest
from django.apps import apps
from django.db import connection

from portal.accounts.models import Membership
from portal.audit.models import AuditEvent
from portal.notifications.models import Notice
from portal.use_cases import gallery, publishing
from portal.use_cases.content import UseCaseRefused
from portal.use_cases.models import MAX_NOTE, UseCase, UseCaseVersion
from portal.use_cases.versions import read_history
from tests.conftest import person
from tests.use_cases import case_content, text_content, use_case

pytestmark = pytest.mark.django_db
State = UseCaseVersion.State


@pytest.fixture
def champion(research):
    made = person("chika", research)
    Membership.objects.filter(user=made).update(is_champion=True)
    return made


def kinds_of(user) -> list[str]:
    return list(Notice.objects.filter(user=user).order_by("pk").values_list("kind", flat=True))


def sees(user, case) -> bool:
    return gallery.visible(user).filter(pk=case.pk).exists()


def states(case) -> list[str]:
    return list(case.versions.order_by("number").values_list("state", flat=True))


def test_a_draft_is_seen_by_its_author_alone(alice, bob, research):
    case = publishing.create_case(alice, research, case_content()).use_case
    assert not sees(alice, case)
    assert gallery.readable(alice).filter(pk=case.pk).exists()
    assert not gallery.readable(bob).filter(pk=case.pk).exists()
    assert kinds_of(bob) == []


def test_who_left_the_tenant_no_longer_reads_what_goes_on_there(alice, bob, research, sales):
    case = use_case(alice, research, publisher=bob)
    publishing.save_version(bob, case, case_content(text_content(title="Later")))
    publishing.save_version(alice, case, case_content(text_content(title="Mine")))
    Membership.objects.filter(user=alice).update(tenant=sales)
    assert not gallery.readable(alice).filter(pk=case.pk).exists()
    assert not gallery.own_versions(alice).exists()
    with pytest.raises(UseCaseRefused):
        publishing.save_version(alice, case, case_content())


def test_a_proposal_notifies_champions_and_admins_and_waits_for_them(alice, bob, champion, olivia, research):
    case = use_case(alice, research)
    assert kinds_of(bob) == kinds_of(champion) == ["use-case-proposed"]
    assert kinds_of(olivia) == kinds_of(alice) == []
    for decider in (bob, champion, olivia):
        assert [one.use_case for one in gallery.waiting_versions(decider)] == [case]
    assert not gallery.waiting_versions(alice).exists()


def test_a_proposal_of_a_tenant_without_champions_goes_to_operators(charlie, sales, olivia):
    use_case(charlie, sales)
    assert kinds_of(olivia) == ["use-case-proposed"]


def test_a_champion_publishes_for_the_tenant_alone(alice, champion, charlie, research):
    case = use_case(alice, research, publisher=champion)
    assert sees(alice, case)
    assert not sees(charlie, case)
    assert kinds_of(alice) == ["use-case-published"]
    with pytest.raises(UseCaseRefused):
        publishing.publish(champion, case, company_wide=True)


def test_an_operator_publishes_for_everyone(alice, bob, charlie, olivia, research):
    case = use_case(alice, research, publisher=bob)
    publishing.publish(olivia, case, company_wide=True)
    assert sees(charlie, case)


def test_what_everyone_sees_only_operators_change(alice, bob, olivia, research):
    case = use_case(alice, research)
    publishing.publish(olivia, case, company_wide=True)
    publishing.save_version(bob, case, case_content(text_content(title="Other")))
    with pytest.raises(UseCaseRefused):
        publishing.publish(bob, case)
    with pytest.raises(UseCaseRefused):
        publishing.hide(bob, case)
    publishing.propose(bob, case)
    publishing.publish(olivia, case)
    case.refresh_from_db()
    assert case.current.number == 2
    assert case.is_company_wide


@pytest.mark.parametrize("verb", [publishing.publish, publishing.hide])
def test_members_and_other_tenants_decide_nothing(alice, bob, charlie, research, verb):
    case = use_case(alice, research, publisher=bob)
    publishing.save_version(alice, case, case_content(text_content(title="Newer")))
    publishing.propose(alice, case)
    for stranger in (alice, charlie):
        with pytest.raises(UseCaseRefused):
            verb(stranger, case)
    assert states(case) == [State.PUBLISHED, State.PROPOSED]


def test_a_champion_who_is_none_any_more_publishes_nothing(alice, champion, research):
    case = use_case(alice, research)
    Membership.objects.filter(user=champion).update(is_champion=False)
    with pytest.raises(UseCaseRefused):
        publishing.publish(champion, case)


def test_an_edit_leaves_what_is_published_until_it_is_published_itself(alice, bob, research):
    case = use_case(alice, research, publisher=bob)
    publishing.save_version(alice, case, case_content(text_content(title="Better")))
    publishing.propose(alice, case)
    case.refresh_from_db()
    assert case.current.text.title == "Reply to a mail"
    publishing.publish(bob, case)
    case.refresh_from_db()
    assert case.current.text.title == "Better"
    assert states(case) == [State.REPLACED, State.PUBLISHED]


def test_only_ones_own_draft_is_overwritten(alice, bob, research):
    case = publishing.create_case(alice, research, case_content()).use_case
    publishing.save_version(alice, case, case_content(text_content(title="Second try")))
    assert states(case) == [State.DRAFT]
    publishing.propose(alice, case)
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")))
    publishing.save_version(alice, case, case_content(text_content(title="By Alice")))
    assert states(case) == [State.PROPOSED, State.DRAFT, State.DRAFT]
    assert list(case.versions.order_by("number").values_list("author__username", flat=True)) == [
        "alice",
        "bob",
        "alice",
    ]


def test_the_draft_of_an_author_is_proposed_published_and_replaced_by_no_one_else(alice, bob, olivia, research):
    case = use_case(alice, research, publisher=bob)
    draft = publishing.save_version(alice, case, case_content(text_content(title="Not ready")))
    for other in (bob, olivia):
        for verb in (publishing.propose, publishing.publish):
            with pytest.raises(UseCaseRefused):
                verb(other, case)
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")), seen=1)
    publishing.publish(bob, case)
    draft.refresh_from_db()
    assert (draft.state, states(case)) == (State.DRAFT, [State.REPLACED, State.DRAFT, State.PUBLISHED])


def test_a_draft_over_which_another_was_published_stays_its_author_s_alone(alice, bob, research):
    case = use_case(alice, research, publisher=bob)
    draft = publishing.save_version(bob, case, case_content(text_content(title="Secret")))
    assert list(gallery.own_versions(bob)) == [draft]
    publishing.save_version(alice, case, case_content(text_content(title="By Alice")))
    publishing.propose(alice, case)
    publishing.publish(bob, case)
    newest = gallery.newest_version(bob, case)
    assert newest is not None
    assert gallery.find_overtaken(newest) == draft.number
    assert list(gallery.overtaken_versions(bob)) == [draft]
    later = publishing.save_version(bob, case, case_content(text_content(title="Again")))
    assert draft not in gallery.versions_for(alice, case)
    assert draft in gallery.versions_for(bob, case)
    assert (list(gallery.own_versions(bob)), list(gallery.overtaken_versions(bob))) == ([later], [])
    publishing.publish(bob, case)
    shown = [one.version.number for one in read_history(alice, case, all_states=True)]
    assert draft.number not in shown
    assert later.number in shown
    assert list(gallery.overtaken_versions(bob)) == [draft]


def test_a_draft_ends_no_proposal(alice, bob, champion, olivia, research):
    case = use_case(alice, research)
    draft = publishing.save_version(champion, case, case_content(text_content(title="Secret")), seen=1)
    assert states(case) == [State.PROPOSED, State.DRAFT]
    for reader in (alice, bob, champion, olivia):
        assert gallery.readable(reader).filter(pk=case.pk).exists()
    assert [one.number for one in gallery.own_versions(alice)] == [1]
    assert [one.number for one in gallery.waiting_versions(bob)] == [1]
    case.refresh_from_db()
    assert case.name == "Reply to a mail"
    publishing.publish(bob, case, seen=1)
    draft.refresh_from_db()
    assert (draft.state, states(case)) == (State.DRAFT, [State.PUBLISHED, State.DRAFT])


@pytest.mark.parametrize("decides", [False, True])
def test_a_proposal_waits_until_a_newer_version_is_proposed_or_published(alice, bob, research, decides):
    case = use_case(alice, research)
    author, verb = (bob, publishing.publish) if decides else (alice, publishing.propose)
    publishing.save_version(author, case, case_content(text_content(title="Newer")))
    assert states(case) == [State.PROPOSED, State.DRAFT]
    verb(author, case)
    case.refresh_from_db()
    assert (case.name, states(case)) == ("Newer", [State.REPLACED, "published" if decides else "proposed"])


@pytest.mark.parametrize("decides", [False, True])
@pytest.mark.parametrize("is_published", [False, True])
def test_the_author_of_a_proposal_that_others_replace_is_notified_and_keeps_it(
    alice, bob, champion, research, decides, is_published
):
    case = use_case(alice, research, publisher=bob if is_published else None)
    if is_published:
        publishing.save_version(alice, case, case_content(text_content(title="Better")))
        publishing.propose(alice, case)
    Notice.objects.all().delete()
    publishing.save_version(champion, case, case_content(text_content(title="Mine")))
    (publishing.publish if decides else publishing.propose)(champion, case)
    notice = Notice.objects.get(user=alice)
    assert (notice.kind, notice.path) == ("use-case-replaced", f"/use-cases/{case.pk}/?version=mine")
    assert notice.facts == {
        "title": "Better" if is_published else "Reply to a mail",
        "by": str(champion),
        "state": "published" if decides else "proposed",
    }
    [kept] = gallery.overtaken_versions(alice)
    assert (kept.number, kept.state) == (1 + is_published, State.REPLACED)
    newest = gallery.newest_version(alice, case)
    assert newest is not None
    assert gallery.find_overtaken(newest) == kept.number
    assert not gallery.overtaken_versions(champion).exists()


def test_who_replaces_their_own_proposal_or_wrote_a_newer_version_is_shown_no_old_one(alice, bob, research):
    case = use_case(alice, research)
    publishing.save_version(alice, case, case_content(text_content(title="Second")))
    publishing.propose(alice, case)
    assert "use-case-replaced" not in kinds_of(alice)
    assert not gallery.overtaken_versions(alice).exists()
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")))
    publishing.publish(bob, case)
    assert [one.number for one in gallery.overtaken_versions(alice)] == [2]
    third = publishing.save_version(alice, case, case_content(text_content(title="Third")))
    assert (list(gallery.overtaken_versions(alice)), list(gallery.own_versions(alice))) == ([], [third])
    newest = gallery.newest_version(alice, case)
    assert newest is not None
    assert gallery.find_overtaken(newest) is None


def test_a_discarded_draft_leaves_the_proposal_waiting(alice, bob, research):
    case = use_case(alice, research)
    for author in (alice, bob):
        draft = publishing.save_version(author, case, case_content(text_content(title="Other")))
        publishing.discard_draft(author, case, draft.number)
        assert states(case) == [State.PROPOSED]
    assert [one.number for one in gallery.waiting_versions(bob)] == [1]


def test_who_has_a_draft_opens_it_whatever_became_of_the_rest(alice, champion, research):
    case = use_case(alice, research)
    draft = publishing.save_version(champion, case, case_content(text_content(title="Other")))
    case.versions.filter(state=State.PROPOSED).update(state=State.REPLACED)  # as earlier releases did
    assert gallery.readable(champion).filter(pk=case.pk).exists()
    assert list(gallery.own_versions(champion)) == [draft]


def test_what_earlier_releases_let_a_draft_replace_waits_again(alice, bob, champion, research):
    drafted, decided, proposed = (use_case(alice, research) for _ in range(3))
    publishing.publish(bob, decided)
    for case in (decided, proposed):
        publishing.save_version(alice, case, case_content(text_content(title="Second")))
        publishing.propose(alice, case)
    for case in (drafted, decided):
        publishing.save_version(champion, case, case_content(text_content(title="Other")))
    before = {case: states(case) for case in (decided, proposed)}
    drafted.versions.filter(state=State.PROPOSED).update(state=State.REPLACED)  # as they did
    migration = importlib.import_module("portal.use_cases.migrations.0004_proposals_below_drafts")
    migration.restore_proposals(apps, connection.schema_editor())
    assert states(drafted) == [State.PROPOSED, State.DRAFT]
    assert {case: states(case) for case in (decided, proposed)} == before
    assert drafted.pk in [one.use_case_id for one in gallery.waiting_versions(bob)]


def test_who_decides_need_not_discard_a_draft_that_they_began_over_a_proposal(alice, champion, research):
    published, returned = (use_case(alice, research) for _ in range(2))
    drafts = [
        publishing.save_version(champion, case, case_content(text_content(title="Mine")))
        for case in (published, returned)
    ]
    publishing.publish(champion, published, seen=1)
    publishing.send_back(champion, returned, "Shorter, please", seen=1)
    assert states(published) == [State.PUBLISHED, State.DRAFT]
    assert states(returned) == [State.RETURNED, State.DRAFT]
    publishing.publish(champion, published, seen=drafts[0].number)  # later, and knowing of the other
    assert states(published) == [State.REPLACED, State.PUBLISHED]


def test_of_a_proposal_that_was_replaced_meanwhile_nothing_is_decided(alice, champion, research):
    case = use_case(alice, research)
    publishing.save_version(champion, case, case_content(text_content(title="Mine")))
    publishing.save_version(alice, case, case_content(text_content(title="Newer")))
    publishing.propose(alice, case)
    for verb in (publishing.publish, lambda by, case, seen: publishing.send_back(by, case, "no", seen=seen)):
        with pytest.raises(publishing.UseCaseChanged):
            verb(champion, case, seen=1)
    assert states(case) == [State.REPLACED, State.DRAFT, State.PROPOSED]


def test_what_was_published_once_is_not_proposed_again_by_discarding_a_draft(alice, bob, research):
    case = use_case(alice, research, publisher=bob)
    publishing.save_version(bob, case, case_content(text_content(title="Second")))
    publishing.publish(bob, case)
    publishing.save_version(alice, case, case_content(text_content(title="Third")))
    publishing.discard_draft(alice, case, 3)
    assert states(case) == [State.REPLACED, State.PUBLISHED]


def test_a_proposal_comes_before_a_draft_that_who_decides_began(alice, bob, research):
    case = use_case(alice, research, publisher=bob)
    publishing.save_version(alice, case, case_content(text_content(title="By Alice")))
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")))
    publishing.propose(alice, case)
    publishing.publish(bob, case)
    case.refresh_from_db()
    assert case.current.text.title == "By Alice"


def test_operators_open_no_case_that_is_only_a_draft(alice, olivia, research):
    case = publishing.create_case(alice, research, case_content()).use_case
    assert not gallery.readable(olivia).filter(pk=case.pk).exists()
    publishing.propose(alice, case)
    assert gallery.readable(olivia).filter(pk=case.pk).exists()


def test_ones_own_list_has_no_draft_of_another(alice, bob, research):
    case = use_case(alice, research, publisher=bob)
    draft = publishing.save_version(alice, case, case_content(text_content(title="By Alice")))
    publishing.save_version(bob, case, case_content(text_content(title="By Bob")))
    assert list(gallery.own_versions(alice)) == [draft]


def test_a_return_needs_a_comment_and_reaches_the_author(alice, bob, research):
    case = use_case(alice, research)
    for note in ("", "   ", "x" * (MAX_NOTE + 1)):
        with pytest.raises(UseCaseRefused):
            publishing.send_back(bob, case, note)
    publishing.send_back(bob, case, "Add an example, please")
    assert states(case) == [State.RETURNED]
    notice = Notice.objects.get(user=alice, kind="use-case-returned")
    assert notice.facts["note"] == "Add an example, please"
    assert notice.path == f"/use-cases/{case.pk}/"


def test_a_hidden_case_is_gone_for_people_and_comes_back(alice, bob, research):
    case = use_case(alice, research, publisher=bob)
    publishing.hide(bob, case)
    assert not sees(alice, case)
    assert list(gallery.hidden_cases(bob)) == [case]
    publishing.show_again(bob, case)
    assert sees(alice, case)


def test_what_others_hid_before_publication_its_author_does_not_show_again(alice, bob, research):
    case = use_case(alice, research)
    publishing.hide(bob, case)
    notice = Notice.objects.get(user=alice)
    assert (notice.kind, notice.path) == ("use-case-hidden", f"/use-cases/{case.pk}/")
    publishing.hide(alice, case)  # what is hidden already
    with pytest.raises(publishing.UseCaseForbidden):
        publishing.show_again(alice, case)
    assert list(gallery.hidden_cases(bob)) == [case]
    assert not gallery.waiting_versions(bob).exists()
    publishing.show_again(bob, case)
    assert [one.use_case for one in gallery.waiting_versions(bob)] == [case]


def test_what_its_author_hid_before_publication_they_show_again_until_others_hide_it(alice, bob, research):
    case = use_case(alice, research)
    publishing.hide(alice, case)
    assert not gallery.hidden_cases(bob).exists()
    publishing.show_again(alice, case)
    publishing.hide(alice, case)
    publishing.hide(bob, case)
    with pytest.raises(publishing.UseCaseForbidden):
        publishing.show_again(alice, case)


def test_what_was_hidden_by_earlier_releases_its_author_still_shows_again(alice, bob, research):
    never, once = use_case(alice, research), use_case(alice, research, publisher=bob)
    for case in (never, once):
        publishing.hide(bob, case)
    migration = importlib.import_module("portal.use_cases.migrations.0005_hidden_by_author")
    migration.keep_what_authors_may(apps, connection.schema_editor())
    publishing.show_again(alice, never)
    with pytest.raises(publishing.UseCaseForbidden):
        publishing.show_again(alice, once)


def test_one_does_not_propose_for_a_tenant_of_others(alice, sales):
    with pytest.raises(UseCaseRefused):
        publishing.create_case(alice, sales, case_content())
    with pytest.raises(UseCaseRefused):
        publishing.create_case(alice, None, case_content())
    assert not UseCase.objects.exists()


def test_the_audit_log_has_each_step(alice, bob, research):
    case = use_case(alice, research)
    publishing.send_back(bob, case, "shorter")
    publishing.save_version(alice, case, case_content())
    publishing.propose(alice, case)
    publishing.publish(bob, case)
    publishing.hide(bob, case)
    events = AuditEvent.objects.filter(object_kind="use-case", tenant=research).order_by("pk")
    steps = ["add", "proposed", "returned", "change", "proposed", "published", "hidden"]
    assert [event.action for event in events] == [f"use-case.{step}" for step in steps]


def test_the_audit_log_has_no_title_of_a_draft(alice, bob, research):
    case = publishing.create_case(alice, research, case_content(text_content(title="Private"))).use_case
    publishing.save_version(alice, case, case_content(text_content(title="Private too")))
    publishing.hide(alice, case)
    publishing.show_again(alice, case)
    publishing.propose(alice, case)
    publishing.send_back(bob, case, "shorter")
    publishing.save_version(alice, case, case_content(text_content(title="Rewritten")))
    publishing.propose(alice, case)
    names = list(AuditEvent.objects.filter(object_kind="use-case").order_by("pk").values_list("object_name", flat=True))
    alone, proposed, rewritten = (f"#{case.pk}{title}" for title in ("", " Private too", " Rewritten"))
    assert names == [alone] * 4 + [proposed] * 3 + [rewritten]


def test_hiding_makes_no_room_without_end(alice, research, monkeypatch):
    monkeypatch.setattr(publishing, "MOST_OPEN", 2)
    monkeypatch.setattr(publishing, "MOST_UNPUBLISHED", 4)
    cases = []
    for _ in range(4):
        cases.append(publishing.create_case(alice, research, case_content()).use_case)
        publishing.hide(alice, cases[-1])
    with pytest.raises(UseCaseRefused) as refusal:
        publishing.create_case(alice, research, case_content())
    assert refusal.value.code == "many"
    for case in cases[:2]:
        publishing.show_again(alice, case)
    with pytest.raises(UseCaseRefused) as refusal:
        publishing.show_again(alice, cases[2])
    assert refusal.value.code == "many"
    publishing.show_again(alice, cases[0])  # is shown
    publishing.hide(alice, cases[0])
    publishing.show_again(alice, cases[2])


def test_who_shows_a_case_again_reads_whose_cases_are_too_many(alice, bob, research, monkeypatch):
    monkeypatch.setattr(publishing, "MOST_OPEN", 1)
    hidden = use_case(alice, research)
    publishing.hide(alice, hidden)
    publishing.create_case(alice, research, case_content())
    for by, code in ((alice, "many"), (bob, "many-of-author")):
        with pytest.raises(UseCaseRefused) as refusal:
            publishing.show_again(by, hidden)
        assert refusal.value.code == code
        assert (str(alice) in refusal.value.sentence) is (by != alice)


def test_one_person_has_only_so_many_that_are_not_published(alice, bob, research, monkeypatch):
    monkeypatch.setattr(publishing, "MOST_OPEN", 2)
    use_case(alice, research, publisher=bob)
    first = use_case(alice, research)
    publishing.create_case(alice, research, case_content())
    with pytest.raises(UseCaseRefused) as refusal:
        publishing.create_case(alice, research, case_content())
    assert refusal.value.code == "many"
    publishing.create_case(bob, research, case_content())
    publishing.hide(alice, first)
    publishing.create_case(alice, research, case_content())
