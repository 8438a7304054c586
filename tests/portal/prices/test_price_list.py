"""Prices that are wrong, or do not fit the others of their model, are refused with an error of a name."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date, timedelta
from decimal import Decimal
from io import StringIO

import pytest
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.management import CommandError, call_command
from django.db import connections
from django.db.models.signals import pre_save
from hypothesis import HealthCheck, given, settings, strategies

from modelregistry.models import ServedModel
from portal.prices import price_list
from portal.prices.models import PriceOptions, TenantBudget, TokenPrice
from portal.prices.price_list import PriceList
from tests.html import all_of, texts
from tests.pages import serve
from tests.portal.recorded import audited

pytestmark = pytest.mark.django_db
TODAY = date(2026, 11, 30)


def price(first: str, last: str | None = None, **more: object) -> TokenPrice:
    values = {"model": "qwen", "input_price": Decimal("0.5"), "output_price": Decimal(2), **more}
    return TokenPrice(
        first_day=date.fromisoformat(first), last_day=date.fromisoformat(last) if last else None, **values
    )


def save(*prices: TokenPrice) -> None:
    for one in prices:
        price_list.save_price(one, by=None, today=TODAY)


def codes(error: ValidationError) -> set[tuple[str, str]]:
    return {(field, one.code) for field, errors in error.error_dict.items() for one in errors}


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (price("2026-04-01", input_price=Decimal(-1)), ("input_price", "min_value")),
        (price("2026-04-01", output_price=Decimal(10**5 + 1)), ("output_price", "max_value")),
        (price("2026-04-01", cached_price=Decimal("0.0000001")), ("cached_price", "max_decimal_places")),
        (price("2026-04-01", input_price=Decimal("NaN")), ("input_price", "invalid")),
        (price("2026-04-01", model=""), ("model", "blank")),
        (price("2026-04-01", kind="other"), ("kind", "invalid_choice")),
        (price("2026-04-01", kind="outside", reference=" "), ("reference", "no-reference")),
        (price("2026-04-01", "2026-03-31"), ("last_day", "order")),
        (price("1999-12-31"), ("first_day", "year")),
        (price("2029-01-01"), ("first_day", "year")),
    ],
)
def test_a_wrong_price_is_refused(wrong, code):
    with pytest.raises(ValidationError) as error:
        save(wrong)
    assert code in codes(error.value)
    assert not TokenPrice.objects.exists()


@pytest.mark.parametrize(
    ("known", "new", "code"),
    [
        ([("2026-04-01", None)], ("2026-04-01", None), "same-day"),
        ([("2026-04-01", "2026-06-30")], ("2026-06-30", None), "overlap"),
        ([("2026-04-01", "2026-06-30")], ("2026-07-02", None), "gap"),
        ([("2026-07-01", None)], ("2026-04-01", "2026-07-01"), "overlap"),
        ([("2026-07-01", None)], ("2026-04-01", "2026-06-29"), "gap"),
    ],
)
def test_a_price_that_does_not_fit_the_others_is_refused(known, new, code):
    save(*(price(*days) for days in known))
    with pytest.raises(ValidationError) as error:
        save(price(*new))
    assert {found for _, found in codes(error.value)} == {code}
    save(price(*new, model="another"))  # of another model it fits


def test_prices_may_be_added_in_any_order_and_each_applies_until_the_next():
    save(price("2026-07-01", input_price=Decimal(3)), price("2026-04-01", "2026-06-30", input_price=Decimal(1)))
    found = price_list.read_price_lists()["internal"]
    days = ("2026-03-31", "2026-04-01", "2026-06-30", "2026-07-01", "2030-01-01")
    prices = [found.find_price("qwen", date.fromisoformat(day)) for day in days]
    assert [one and one.input_price for one in prices] == [None, 1, 1, 3, 3]


def test_removing_a_price_leaves_no_gap():
    save(price("2026-04-01", "2026-06-30"), middle := price("2026-07-01"), price("2026-10-01"))
    with pytest.raises(ValidationError) as error:
        price_list.remove_price(middle, by=None)
    assert {found for _, found in codes(error.value)} == {"gap"}
    price_list.remove_price(TokenPrice.objects.get(first_day="2026-10-01"), by=None)
    assert TokenPrice.objects.count() == 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strategies.lists(strategies.tuples(strategies.integers(0, 30), strategies.none() | strategies.integers(0, 9))))
def test_whatever_is_accepted_each_day_has_one_price_at_most_and_no_hole(spans):
    TokenPrice.objects.all().delete()
    start = date(2026, 4, 1)
    for first, length in spans:
        begin = start + timedelta(days=first)
        last = None if length is None else begin + timedelta(days=length)
        try:
            save(price(begin.isoformat(), last and last.isoformat()))
        except ValidationError:
            continue
    found = price_list.read_price_lists()["internal"]
    priced = [found.find_price("qwen", start + timedelta(days=n)) is not None for n in range(45)]
    assert "".join("x" if one else "." for one in priced).strip(".").count(".") == 0


@pytest.mark.parametrize(("amount", "yen"), [("0.49", 0), ("0.5", 1), ("1.5", 2), ("2.5", 3), ("1234.4999999", 1234)])
def test_amounts_are_rounded_half_up(amount, yen):
    assert price_list.round_yen(Decimal(amount)) == yen


def test_cached_tokens_have_their_own_price_or_that_of_others():
    one = price("2026-04-01", input_price=Decimal("0.3"), cached_price=Decimal("0.1"))
    assert one.cost(1000, 400, 2000) == Decimal("0.18") + Decimal("0.04") + 4
    assert price("2026-04-01", input_price=Decimal("0.3")).cost(1000, 400, 2000) == Decimal("4.3")


def test_changes_are_recorded_and_only_operators_make_them(bob, olivia, research):
    with pytest.raises(PermissionDenied):
        price_list.save_price(price("2026-04-01"), by=bob, today=TODAY)
    with pytest.raises(PermissionDenied):
        price_list.set_budget(research, 5, by=bob)
    one = price("2026-04-01")
    price_list.save_price(one, by=olivia, today=TODAY)
    one.output_price = Decimal(3)
    price_list.save_price(one, by=olivia, today=TODAY)
    price_list.remove_price(one, by=olivia)
    price_list.set_budget(research, 5, by=olivia)
    price_list.set_budget(research, None, by=olivia)
    assert audited(object_kind="price") == ["price.add", "price.change", "price.remove"]
    assert audited(object_kind="budget") == ["budget.add", "budget.remove"]


@pytest.fixture
def qwen() -> ServedModel:
    return serve("qwen")


@pytest.mark.usefixtures("qwen")
class TestPages:
    FORM = {"kind": "internal", "model": "qwen", "first_day": "2026-04-01", "input_price": "0.5", "output_price": "1.5"}

    def test_an_operator_adds_changes_and_removes_a_price(self, as_olivia):
        as_olivia.post("/prices/", self.FORM)
        one = TokenPrice.objects.get()
        as_olivia.post(f"/prices/{one.pk}/", {**self.FORM, "output_price": "2.25"})
        one.refresh_from_db()
        assert one.output_price == Decimal("2.25")
        [folded] = all_of(as_olivia.get(f"/prices/{one.pk}/"), "details.danger")
        assert (len(folded.all("button")), "open" in folded.attributes) == (1, False)  # not pressed by accident
        as_olivia.post(f"/prices/{one.pk}/remove/")
        assert not TokenPrice.objects.exists()

    @pytest.mark.parametrize(("change", "code"), [({"model": "gwen"}, "no-model"), ({"output_price": "1000"}, "dear")])
    def test_what_may_not_be_meant_is_asked_once(self, as_olivia, change, code):
        answer = as_olivia.post("/prices/", {**self.FORM, **change})
        assert [one["data-caution"] for one in all_of(answer, "#caution [data-caution]")] == [code]
        assert not TokenPrice.objects.exists()
        confirmed = {"confirmed": answer.context["form"].confirmation()}
        other = {"input_price": "1000"} if code == "dear" else {"model": "owen"}
        assert as_olivia.post("/prices/", {**self.FORM, **change, **other, **confirmed}).status_code == 200
        assert not TokenPrice.objects.exists()  # the answer was about another price
        assert as_olivia.post("/prices/", {**self.FORM, **change, **confirmed}).status_code == 302
        one = TokenPrice.objects.get()
        asked = as_olivia.post(f"/prices/{one.pk}/", {**self.FORM, **change, "first_day": "2026-05-01"})
        assert asked.status_code == (200 if code == "dear" else 302)  # a deleted model may keep its price

    @pytest.mark.parametrize("other", [{"first_day": "2026-05-01"}, {"kind": "outside", "reference": "Service X"}])
    def test_an_answer_is_about_one_day_and_kind(self, as_olivia, other):
        dear = {**self.FORM, "output_price": "1000"}
        confirmed = {"confirmed": as_olivia.post("/prices/", dear).context["form"].confirmation()}
        answer = as_olivia.post("/prices/", {**dear, **other, **confirmed})
        assert [one.code for one in answer.context["form"].cautions] == ["dear"]
        assert not TokenPrice.objects.exists()

    def test_a_day_too_long_ago_is_refused_with_the_first_year(self, as_olivia):
        answer = as_olivia.post("/prices/", {**self.FORM, "first_day": "1999-12-31"})
        assert "2000" in str(answer.context["form"].errors["first_day"])

    def test_of_two_cautions_both_are_said(self, as_olivia):
        plain = as_olivia.get("/prices/")
        page = as_olivia.post("/prices/", {**self.FORM, "model": "gwen", "output_price": "1000"})
        assert [one["data-caution"] for one in all_of(page, "#caution [data-caution]")] == ["no-model", "dear"]
        button = "#add-price button.primary"
        assert texts(page, button) != texts(plain, button), "the button does not say that it saves all the same"

    @pytest.mark.parametrize(
        "wrong", [{"input_price": "-1"}, {"first_day": "x"}, {"output_price": "1e9"}, {"model": ""}]
    )
    def test_a_wrong_form_keeps_what_was_typed_and_says_which_field(self, as_olivia, wrong):
        answer = as_olivia.post("/prices/", {**self.FORM, **wrong})
        assert set(answer.context["form"].errors) == set(wrong)
        assert not TokenPrice.objects.exists()

    def test_a_second_price_from_the_same_day_is_an_error_of_its_field(self, as_olivia):
        save(price("2026-04-01"))
        answer = as_olivia.post("/prices/", self.FORM)
        assert [error.code for error in answer.context["form"].errors.as_data()["first_day"]] == ["same-day"]

    def test_an_overlap_is_an_error_of_its_field(self, as_olivia):
        save(price("2026-04-01", "2026-06-30"))
        answer = as_olivia.post("/prices/", {**self.FORM, "first_day": "2026-06-01"})
        assert set(answer.context["form"].errors) == {"last_day"}

    @pytest.mark.parametrize("yen", ["0", "-5", "x", "9" * 20])
    def test_an_absurd_budget_is_refused(self, as_olivia, research, yen):
        as_olivia.post("/prices/budgets/", {"tenant": research.slug, "yen": yen})
        assert not TenantBudget.objects.exists()


@pytest.mark.usefixtures("qwen")
class TestApi:
    def test_prices_are_read_added_changed_and_removed(self, call, olivia):
        send = call(olivia)
        new = {"model": "qwen", "first_day": "2026-04-01", "input_price": "0.5", "output_price": "1.5"}
        answer = send("POST", "prices/", new)
        assert (answer.status_code, answer.json()["cautions"]) == (201, [])
        number = answer.json()["id"]
        assert send("POST", "prices/", new).status_code == 400
        wrong = send("PATCH", f"prices/{number}/", {"last_day": "2026-03-01"}).json()["errors"]
        assert [fault["pointer"] for fault in wrong] == ["#/last_day"]
        assert send("PATCH", f"prices/{number}/", {"output_price": "3"}).json()["output_price"] == "3.000000"
        assert send("DELETE", f"prices/{number}/").status_code == 204

    def test_two_operators_who_change_one_price_at_once_lose_nothing(self, call, olivia, monkeypatch):
        new = {"model": "qwen", "first_day": "2026-04-01", "input_price": "0.5", "output_price": "1.5"}
        number = call(olivia)("POST", "prices/", new).json()["id"]
        lock = price_list.lock_prices

        def wait_for_another() -> PriceOptions:
            TokenPrice.objects.filter(pk=number).update(input_price="0.25")
            return lock()

        monkeypatch.setattr(price_list, "lock_prices", wait_for_another)
        assert call(olivia)("PATCH", f"prices/{number}/", {"output_price": "3"}).status_code == 200
        price = TokenPrice.objects.get()
        assert (price.input_price, price.output_price) == (Decimal("0.25"), Decimal(3))

    @pytest.mark.parametrize(
        ("change", "codes"),
        [
            ({"model": "gwen"}, ["no-model"]),
            ({"output_price": "1000"}, ["dear"]),
            ({"model": "gwen", "output_price": "1000"}, ["no-model", "dear"]),
        ],
    )
    def test_what_may_not_be_meant_is_saved_and_named(self, call, olivia, change, codes):
        new = {"model": "qwen", "first_day": "2026-04-01", "input_price": "0.5", "output_price": "1.5"}
        answer = call(olivia)("POST", "prices/", {**new, **change})
        assert (answer.status_code, answer.json()["cautions"]) == (201, codes)

    def test_budgets_and_the_display_are_set(self, call, olivia, research):
        answer = call(olivia)("PATCH", "prices/settings/", {"tenant": "research", "yen": 7, "shown_to_people": True})
        assert answer.json() == {"shown_to_people": True, "budgets": [{"tenant": "research", "yen": 7}]}
        assert call(olivia)("PATCH", "prices/settings/", {"yen": 7}).status_code == 400

    def test_a_budget_of_no_tenant_changes_nothing(self, call, olivia, research):
        body = {"tenant": "nowhere", "yen": 7, "shown_to_people": True}
        assert call(olivia)("PATCH", "prices/settings/", body).status_code == 400
        assert not price_list.is_shown_to_people()


def test_the_command_sets_and_removes_a_price():
    known = {"model": "qwen", "first_day": date(2026, 4, 1)}
    call_command("setprice", **known, input_price=Decimal(1), output_price=Decimal(2), stdout=StringIO())
    call_command("setprice", **known, input_price=Decimal(1), output_price=Decimal(4), stdout=StringIO())
    assert TokenPrice.objects.get().output_price == 4
    with pytest.raises(CommandError):
        call_command("setprice", **known, input_price=Decimal(-1), output_price=Decimal(4), stdout=StringIO())
    call_command("setprice", **known, remove=True, stdout=StringIO())
    assert not TokenPrice.objects.exists()


def test_the_command_names_all_that_may_not_be_meant():
    warnings = StringIO()
    call_command(
        *("setprice", "--model", "gwen", "--from", "2026-04-01", "--input", "1000", "--output", "1"),
        stdout=StringIO(),
        stderr=warnings,
    )
    assert re.findall(r"\((.*?)\)", warnings.getvalue())[:1] == ["no-model"]
    assert "(dear)" in warnings.getvalue()


def test_a_list_without_prices_is_false():
    assert not PriceList([])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("change", ["budget", "display", "price"])
def test_of_two_who_save_at_once_one_waits_for_the_other(research, change):
    verbs = {
        "budget": lambda: price_list.set_budget(research, 5000, by=None),
        "display": lambda: price_list.set_shown_to_people(True, by=None),
        "price": lambda: save(price("2026-04-01")),
    }
    together = threading.Barrier(2)

    def meet(sender: type, **_more: object) -> None:
        """Wait for the other one, who comes this far only if both found nothing there."""
        if sender in (TenantBudget, PriceOptions, TokenPrice):
            with suppress(threading.BrokenBarrierError):
                together.wait(0.5)

    def work() -> str:
        try:
            verbs[change]()
        except ValidationError:
            return "refused"
        finally:
            connections.close_all()
        return "saved"

    pre_save.connect(meet)
    try:
        with ThreadPoolExecutor(2) as pool:
            results = [one.result(30) for one in [pool.submit(work) for _ in range(2)]]
    finally:
        pre_save.disconnect(meet)
    assert sorted(results) == (["refused", "saved"] if change == "price" else ["saved", "saved"])
    price_list.set_shown_to_people(False, by=None)
    assert not price_list.is_shown_to_people()
    assert PriceOptions.objects.count() == 1
