"""The organiser's page of a seminar in a browser: it follows those who join and disturbs no one who uses it."""

import pytest
from django.utils import timezone
from playwright.sync_api import expect

from portal.lessons import seminars
from tests.browser.pages import REFUSED_FORM, enter
from tests.conftest import person
from tests.seminars import seminar_of

pytestmark = pytest.mark.django_db(transaction=True)

EVERY = 20_000  # ms: the page asks every five seconds


def test_it_follows_while_a_person_scrolls_and_uses_the_keyboard(open_page, site, bob, alice, research):
    seminar = seminar_of(research, bob)
    seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
    page = open_page(width=390)
    enter(page, site, "bob")
    page.goto(f"/lessons/seminars/{seminar.pk}/")
    link, table = page.locator("[data-participant=alice] a"), page.locator("#participants .scroll")
    link.focus()
    table.evaluate("table => { table.scrollLeft = 50; }")
    seminars.join_seminar(person("carol", research), seminars.code_of(seminar), timezone.now())
    expect(page.locator("[data-participant=carol]")).to_be_attached(timeout=EVERY)
    expect(link).to_be_focused()
    assert table.evaluate("table => table.scrollLeft") == 50
    page.keyboard.press("Enter")
    page.wait_for_url("**/keys/*/")


def test_it_follows_after_a_name_that_means_no_one(open_page, site, provoked, bob, alice, research):
    provoked.append(REFUSED_FORM)
    seminar = seminar_of(research, bob)
    page = open_page()
    enter(page, site, "bob")
    page.goto(f"/lessons/seminars/{seminar.pk}/")
    page.locator("[name=names]").fill("zelda")
    page.locator("#name-people button").click()
    page.wait_for_url("**/people/")
    seminars.join_seminar(alice, seminars.code_of(seminar), timezone.now())
    expect(page.locator("[data-participant=alice]")).to_be_attached(timeout=EVERY)
    expect(page.locator("[name=names]")).to_have_value("zelda")
