"""What is read of the card of a checkpoint's publisher, and what is not."""

import json
import os

import pytest

from modelregistry.files.metadata import ModelMetadata
from modelregistry.files.model_card import ModelCard, parse_model_card, read_model_card
from modelregistry.files.model_files import read_model
from tests.modelregistry.paper_models import gguf, small_llama


@pytest.mark.parametrize(
    ("front", "card"),
    [
        ("license: apache-2.0\nlanguage: ja", ModelCard("apache-2.0", ("ja",))),
        ("license: apache-2.0\nlanguage: [ja, 'en', zh-Hans]", ModelCard("apache-2.0", ("ja", "en", "zh-hans"))),
        ('language:\n- ja\n  - "en"\ntags:\n- de\nlicense: mit # of the weights', ModelCard("mit", ("ja", "en"))),
        ("license: other\nlicense_name: gemma", ModelCard("gemma")),
        ("license:\nlanguage:\n", ModelCard()),
        ("license: \x1b[31mred", ModelCard("\N{REPLACEMENT CHARACTER}[31mred")),
        ("language: [1, '', ja]", ModelCard("", ("ja",))),
        ("tags: license: mit", ModelCard()),
    ],
)
def test_licence_and_languages_are_read(front, card):
    assert parse_model_card(f"---\n{front}\n---\nlicense: text\n") == card


@pytest.mark.parametrize("text", ["", "# A model\nlicense: mit", "---\nlicense: mit\n", "\n---\nlicense: mit\n---\n"])
def test_only_the_yaml_at_the_beginning_counts(text):
    assert parse_model_card(text) == ModelCard()


def test_a_card_that_cannot_be_read_says_nothing(tmp_path):
    assert read_model_card(tmp_path) == ModelCard()
    os.mkfifo(tmp_path / "README.md")
    assert read_model_card(tmp_path) == ModelCard()


def test_a_checkpoint_and_a_gguf_file_have_them_among_their_facts(tmp_path):
    small_llama(tmp_path / "llama")
    (tmp_path / "llama" / "README.md").write_text("---\nlicense: llama3.1\nlanguage: [ja, en]\n---\n")
    said = {"general.license": "apache-2.0", "general.languages": ["ja", "EN"], "general.tags": ["chat"] * 300}
    read = [read_model("vllm", str(tmp_path / "llama"), ())]
    read += [read_model("llama.cpp", str(gguf(tmp_path / "m.gguf", values=said)), ())]
    assert [(facts.licence, facts.languages) for facts in read] == [
        ("llama3.1", ("ja", "en")),
        ("apache-2.0", ("ja", "en")),
    ]
    assert ModelMetadata.of(json.loads(json.dumps(read[0].stored()))) == read[0]
