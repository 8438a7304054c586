"""The life of a use case: who may do what with it, what others see meanwhile, and who is notified."""

import pytest

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
    assert states(case) == [State.REPLACED, State.DRAFT, State.DRAFT]
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
    assert list(gallery.overtaken_drafts(bob)) == [draft]
    later = publishing.save_version(bob, case, case_content(text_content(title="Again")))
    assert draft not in gallery.versions_for(alice, case)
    assert draft in gallery.versions_for(bob, case)
    assert (list(gallery.own_versions(bob)), list(gallery.overtaken_drafts(bob))) == ([later], [])
    publishing.publish(bob, case)
    shown = [one.version.number for one in read_history(alice, case, all_states=True)]
    assert draft.number not in shown
    assert later.number in shown
    assert list(gallery.overtaken_drafts(bob)) == [draft]


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
