"""The search over the whole site finds what a person may see, and nothing else."""

import pytest
from django.utils.translation import gettext_lazy

from modelregistry.models import Alias
from portal.accounts.models import Membership, User
from portal.keys.models import ModelAccess
from portal.quotas.models import QuotaRequest
from portal.use_cases import publishing
from portal.web import search
from tests.conftest import person
from tests.html import all_of, has, one_of, texts
from tests.pages import key_of, serve, service_key_of, use
from tests.portal.browsing import client_of, read
from tests.use_cases import text_content, use_case

pytestmark = pytest.mark.django_db


def found(client, text: str, kind: str) -> list[str]:
    """Return the addresses that were found of this kind."""
    response = client.get("/search/", {"q": text})
    assert response.status_code == 200
    return [link["href"] for link in all_of(response, f"[data-kind={kind}] a")]


def test_models_are_found_by_each_of_their_names(as_alice, sales):
    model = serve("org/qwen")
    Alias.objects.create(name="house-default", model=model)
    ModelAccess.objects.create(model=serve("qwen-of-sales"), tenant=sales)
    assert found(as_alice, "QWEN", "models") == found(as_alice, "house", "models") == ["/models/org~qwen/"]


def test_people_are_found_by_who_administers_them(alice, bob, charlie, olivia, research):
    person("yamada", research, first_name="花子", last_name="山田")
    bobs, olivias = client_of(bob), client_of(olivia)
    for text in ("yamada", "山田 花子", "山田花子", "花子 山田"):
        assert len(found(bobs, text, "people")) == 1
    assert len(found(olivias, "charlie", "people")) == 1
    assert found(bobs, "charlie", "people") == found(client_of(alice), "yamada", "people") == []
    assert bobs.get(found(bobs, "yamada", "people")[0]).status_code == 200


def test_tenants_are_found_by_who_administers_them(as_alice, as_bob, as_olivia, research, sales):
    assert found(as_bob, "research", "tenants") == ["/tenant/research/"]
    assert found(as_olivia, "sales", "tenants") == ["/tenant/sales/"]
    assert found(as_alice, "research", "tenants") == found(as_bob, "sales", "tenants") == []


def test_keys_are_found_by_who_may_see_them(as_alice, as_bob, alice, bob, research):
    mine, service = key_of(alice, research, "my laptop"), service_key_of(research, "Wiki bot")
    for text in ("LAPTOP", mine.prefix, f"{mine.prefix}…"):
        assert found(as_alice, text, "keys") == [f"/keys/{mine.prefix}/"]
    assert found(as_bob, "laptop", "keys") == found(as_alice, "wiki", "keys") == []
    assert found(as_bob, "wiki", "keys") == [f"/keys/{service.prefix}/"]


def test_the_secret_part_of_a_pasted_key_goes_nowhere(as_alice, alice, research):
    key = key_of(alice, research)
    pasted = f"{key.prefix}{'x' * 30}"
    assert found(as_alice, f"Bearer {pasted}", "keys") == []
    assert found(as_alice, pasted, "keys") == [f"/keys/{key.prefix}/"]
    page = as_alice.get("/search/", {"q": pasted})
    assert one_of(page, "#search")["value"] == key.prefix


def test_a_request_is_found_by_its_whole_id(as_alice, as_bob, alice, research, charlie):
    call = use(key_of(alice, research))
    for client in (as_alice, as_bob):
        assert found(client, call.request_id, "requests") == [f"/requests/{call.request_id}/"]
    assert found(client_of(charlie), call.request_id, "requests") == []
    assert found(as_alice, call.request_id[:20], "requests") == []


def test_use_cases_are_found_by_who_sees_them(as_alice, as_olivia, alice, bob, charlie, olivia, research, sales):
    texts_ = text_content(title="Minutes of a meeting", summary="Short minutes."), text_content("ja", title="議事録")
    mine = use_case(alice, research, *texts_, publisher=bob)
    of_sales = use_case(charlie, sales, text_content(title="Minutes of sales"), publisher=olivia)
    everyones = use_case(charlie, sales, text_content(title="Minutes for all"), publisher=olivia)
    publishing.publish(olivia, everyones, company_wide=True)
    use_case(alice, research, text_content(title="Minutes of a draft"))  # only proposed
    publishing.hide(bob, use_case(alice, research, text_content(title="Minutes of old"), publisher=bob))
    pages = {case: f"/use-cases/{case.pk}/" for case in (mine, of_sales, everyones)}
    for text in ("MINUTES", "meeting minutes", "short"):
        assert pages[mine] in found(as_alice, text, "use-cases")
    assert found(as_alice, "議事", "use-cases") == [pages[mine]]
    assert set(found(as_alice, "minutes", "use-cases")) == {pages[mine], pages[everyones]}
    assert set(found(client_of(charlie), "minutes", "use-cases")) == {pages[of_sales], pages[everyones]}
    assert set(found(as_olivia, "minutes", "use-cases")) == {*pages.values()}


def test_quota_requests_are_found_by_their_author_and_by_who_decides(alice, bob, charlie, olivia, research):
    row = QuotaRequest.objects.create(
        **{"tenant": research, "user": alice, "asked_by": alice, "unit": "tokens", "window": "day"},
        **{"amount": 200, "previous_amount": 100, "reason": "Quarterly report"},
    )
    decided = f"/tenant/research/requests/#request-{row.pk}"
    for who, text, address in [
        (alice, "quarterly", f"/more/{row.pk}/"),
        (bob, "QUARTERLY", decided),
        (bob, "alice", decided),
        (olivia, "quarterly", decided),
    ]:
        assert found(client_of(who), text, "quota-requests") == [address], (who, text)
        assert client_of(who).get(address).status_code == 200
    assert found(client_of(charlie), "quarterly", "quota-requests") == []


def test_only_the_first_are_shown_and_a_link_leads_to_the_others(as_alice):
    for number in range(search.SHOWN + 1):
        serve(f"model-{number}")
    serve("other")
    page = as_alice.get("/search/", {"q": "model"})
    assert len(all_of(page, "[data-kind=models] li")) == search.SHOWN
    more = as_alice.get("/search/" + one_of(page, "[data-more=models]")["href"])
    assert len(all_of(more, "[data-kind=models] li")) == search.SHOWN + 1
    assert [section["data-kind"] for section in all_of(more, "[data-kind]")] == ["models"]
    assert not has(more, "[data-cut], [data-more]")


def test_of_very_many_the_page_says_that_there_are_more(as_olivia, research):
    User.objects.bulk_create(User(username=f"sato-{number:03}", last_name="佐藤") for number in range(search.MOST + 1))
    people = User.objects.filter(last_name="佐藤")
    Membership.objects.bulk_create(Membership(user=one, tenant=research) for one in people)
    page = as_olivia.get("/search/", {"q": "佐藤", "kind": "people"})
    assert len(all_of(page, "[data-kind=people] li")) == search.MOST
    assert has(page, "[data-cut]")


def test_the_link_to_more_has_no_secret_part(as_alice, alice, research):
    key = key_of(alice, research)
    for number in range(search.SHOWN + 1):
        key_of(alice, research, f"{key.prefix} {number}")
    page = as_alice.get("/search/", {"q": f"{key.prefix}{'x' * 30}"})
    assert "xxx" not in one_of(page, "[data-more=keys]")["href"]


def test_from_one_kind_a_link_leads_to_every_kind_also_where_nothing_was_found(as_alice):
    serve("qwen")
    for kind, sections in (("models", ["models"]), ("keys", [])):
        page = as_alice.get("/search/", {"q": "qwen", "kind": kind})
        assert [section["data-kind"] for section in all_of(page, "[data-kind]")] == sections
        everything = as_alice.get("/search/" + one_of(page, "[data-every-kind]")["href"])
        assert has(everything, "[data-kind=models]")
        assert not has(everything, "[data-every-kind]")


@pytest.mark.parametrize("kind", ["", "x", "people'", "%"])
def test_an_unknown_kind_is_every_kind(as_alice, kind):
    serve("qwen")
    assert has(as_alice.get("/search/", {"q": "qwen", "kind": kind}), "[data-kind=models]")


@pytest.mark.parametrize("text", ["", "x", " q ", "nothing like it", "%", "_" * 300, "\\", "'\"<b>"])
def test_what_is_not_there_is_not_found(as_alice, text):
    serve("qwen")
    page = as_alice.get("/search/", {"q": text})
    assert page.status_code == 200
    assert not has(page, "[data-kind]")
    assert has(page, "[data-nothing]") is bool(text.strip())


def test_another_package_adds_what_it_finds(as_alice, monkeypatch):
    monkeypatch.setattr(search, "kinds", {})
    result = search.SearchResult(title="Minutes", address="/minutes/")
    asked = []

    def find(user, text, most):
        asked.append((user.username, text, most))
        return [result]

    search.register(search.SearchKind(name="cases", title=gettext_lazy("Uses"), order=1, find=find))
    assert found(as_alice, "min", "cases") == ["/minutes/"]
    assert asked == [("alice", "min", search.SHOWN + 1)]


def test_it_costs_the_same_however_much_there_is(as_olivia, alice, research, django_assert_max_num_queries):
    for number in range(12):
        key_of(alice, research, f"key {number}")
        person(f"key-person-{number}", research)
        serve(f"key-model-{number}")
    with django_assert_max_num_queries(14):
        page = read(as_olivia, "/search/?q=key")
    assert len(texts(page, "[data-kind=people] li")) == search.SHOWN
