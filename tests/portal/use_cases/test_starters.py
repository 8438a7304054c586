"""The use cases that Madoguchi brings along."""

import pytest

from portal.use_cases import publishing, starters
from portal.use_cases.content import content_of
from portal.use_cases.models import UseCase
from portal.use_cases.starters import load_starter, load_starters, read_starter, starter_files
from portal.use_cases.variables import example_values, fill_in
from tests.use_cases import case_content, text_content

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("path", starter_files(), ids=lambda path: path.stem)
def test_each_is_whole_in_both_languages(path):
    content = read_starter(path)
    assert [text.language for text in content.texts] == ["ja", "en"]
    for text in content.texts:
        assert text.expected_input
        assert text.example_answer
        assert all(example_values(text.variables).values())
        assert "{{" not in fill_in(text.prompt, example_values(text.variables))


def test_there_are_two_dozen_and_loading_again_changes_nothing():
    assert len(load_starters()) == 24
    before = list(UseCase.objects.order_by("pk").values_list("pk", "current", "published_at"))
    assert load_starters() == []
    assert list(UseCase.objects.order_by("pk").values_list("pk", "current", "published_at")) == before


@pytest.fixture
def upgraded(monkeypatch, tmp_path):
    """Load one starter, and return the file of its next version."""
    path = starter_files()[0]
    load_starter(path)
    newer = tmp_path / path.name
    newer.write_text(path.read_text().replace('kind = "', '# changed\nkind = "'))
    monkeypatch.setattr(starters, "FOLDER", tmp_path)
    return newer


def test_an_upgrade_brings_a_new_version(upgraded):
    assert load_starters() == [upgraded.stem]
    assert UseCase.objects.get().current.number == 2


def test_an_upgrade_overwrites_no_edit_of_people(upgraded, olivia):
    case = UseCase.objects.get()
    publishing.save_version(olivia, case, case_content(text_content(title="Ours")))
    publishing.publish(olivia, case)
    assert load_starters() == []
    case.refresh_from_db()
    assert content_of(case.current).name == "Ours"


def test_a_hidden_one_stays_hidden(upgraded, olivia):
    publishing.hide(olivia, UseCase.objects.get())
    load_starters()
    assert UseCase.objects.get().retired_at is not None
