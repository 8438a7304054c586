"""Two people who have the same form open: the second learns that the first has saved, and undoes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.db.models import Model
from django.urls import reverse

from modelregistry.models import Host
from portal.notifications.models import Webhook
from portal.prices.models import TokenPrice
from tests.html import filled_form
from tests.news import announce
from tests.pages import external, service_key_of
from tests.seminars import seminar_of

pytestmark = pytest.mark.django_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A row at the address of its form. The first person sets `first`, the second one `second`: names and values."""

    row: Model
    address: str
    first: tuple[str, str]
    second: tuple[str, str]

    def stored(self) -> tuple[Any, ...]:
        self.row.refresh_from_db()
        return tuple(str(getattr(self.row, name)) for name, _ in (self.first, self.second))


def of_news(**_people: Any) -> Edited:
    row = announce(title_ja="お知らせ", title_en="News")
    return Edited(
        row=row, address=reverse("news-edit", args=[row.pk]), first=("title_ja", "更新"), second=("title_en", "Other")
    )


def of_price(**_people: Any) -> Edited:
    external("qwen")
    row = TokenPrice.objects.create(
        kind="internal", model="qwen", first_day="2026-05-01", input_price=1, output_price=1
    )
    address = reverse("price", args=[row.pk])
    return Edited(row=row, address=address, first=("reference", "List"), second=("output_price", "3"))


def of_webhook(**_people: Any) -> Edited:
    row = Webhook.objects.create(
        name="Chat", style="slack", url="https://hooks.example/x", language="ja", kinds=["model-down"]
    )
    address = reverse("webhook", args=[row.pk])
    return Edited(row=row, address=address, first=("name", "Team"), second=("language", "en"))


def of_tenant(research: Any, **_people: Any) -> Edited:
    address = reverse("tenant-edit", args=[research.slug])
    return Edited(row=research, address=address, first=("name", "R&D"), second=("key_days", "30"))


def of_seminar(research: Any, olivia: Any) -> Edited:
    row = seminar_of(research, olivia, title="Begin", places=20, tokens=1000)
    address = reverse("seminar-edit", args=[row.pk])
    return Edited(row=row, address=address, first=("title", "First steps"), second=("places", "30"))


def of_key(research: Any, olivia: Any) -> Edited:
    row = service_key_of(research, "bot")
    address = reverse("key-edit", args=[row.prefix])
    return Edited(row=row, address=address, first=("name", "robot"), second=("purpose", "minutes"))


def of_host(**_people: Any) -> Edited:
    row = Host.objects.create(name="gpu-1", address="10.0.0.1")
    address = reverse("operations-host", args=[row.pk])
    return Edited(row=row, address=address, first=("address", "10.0.0.2"), second=("maintenance", "on"))


def of_model(**_people: Any) -> Edited:
    row = external("far", description_ja="遠い", description_en="far")
    address = reverse("operations-edit", args=[row.name])
    return Edited(row=row, address=address, first=("description_ja", "近い"), second=("description_en", "near"))


FORMS = [of_news, of_price, of_webhook, of_tenant, of_seminar, of_key, of_host, of_model]


@pytest.mark.parametrize("make", FORMS)
def test_the_second_learns_that_the_first_has_saved(make: Callable[..., Edited], as_olivia, research, olivia):
    edited = make(research=research, olivia=olivia)
    forms = [form_at(as_olivia, edited.address) for _ in range(2)]
    saved = as_olivia.post(edited.address, forms[0] | dict([edited.first]))
    assert saved.status_code == 302, saved.context["form"].errors
    before = edited.stored()
    answer = as_olivia.post(edited.address, forms[1] | dict([edited.second]))
    assert answer.status_code == 400
    assert codes_of(answer) == ["changed-meanwhile"]
    assert edited.stored() == before
    assert before[0] == edited.first[1]
    again = form_at(as_olivia, edited.address)
    assert as_olivia.post(edited.address, again | dict([edited.second])).status_code == 302
    assert edited.stored()[0] == edited.first[1]
    assert edited.stored() != before


@pytest.mark.parametrize("make", FORMS)
def test_a_form_that_is_sent_twice_is_saved_once(make: Callable[..., Edited], as_olivia, research, olivia):
    edited = make(research=research, olivia=olivia)
    form = form_at(as_olivia, edited.address) | dict([edited.first])
    for _again in range(2):
        answer = as_olivia.post(edited.address, form)
        assert answer.status_code == 302, answer.context["form"].errors
    assert edited.stored()[0] == edited.first[1]


def form_at(browser: Any, address: str) -> dict[str, list[str]]:
    """Return what the page's form would post unchanged. It shows its edition."""
    form = filled_form(browser.get(address), "form[novalidate]")
    assert form["edition"] != [""]
    return form


def codes_of(answer: Any) -> list[str]:
    return [error.code for error in answer.context["form"].non_field_errors().as_data()]


@pytest.mark.parametrize("make", FORMS)
def test_saved_unchanged_the_form_is_taken_twice(make: Callable[..., Edited], as_olivia, research, olivia):
    edited = make(research=research, olivia=olivia)
    assert as_olivia.post(edited.address, form_at(as_olivia, edited.address)).status_code == 302  # to whole minutes
    form, before = form_at(as_olivia, edited.address), edited.stored()
    for _ in range(2):
        answer = as_olivia.post(edited.address, form)
        assert answer.status_code == 302, answer.context["form"].errors
    assert edited.stored() == before


def test_a_form_of_something_new_has_no_edition(as_olivia, research):
    for name in ("news-new", "webhook-new", "tenant-new", "prices", "seminar-new", "operations-new"):
        assert "edition" not in filled_form(as_olivia.get(reverse(name)), "form[novalidate]"), name


def test_the_digest_of_a_form_does_not_cover_secrets(as_olivia):
    row = external("far", upstream_key="one")
    address = reverse("operations-edit", args=[row.name])
    before = form_at(as_olivia, address)["edition"]
    type(row).objects.filter(pk=row.pk).update(upstream_key="other")
    assert form_at(as_olivia, address)["edition"] == before
