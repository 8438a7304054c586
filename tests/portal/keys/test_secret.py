import pytest

from portal.keys import secret


def test_a_new_key_is_well_formed_and_none_is_like_another():
    keys = {secret.make_secret() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(secret.is_well_formed(key) for key in keys)


@pytest.mark.parametrize("position", [0, 3, 4, 20, 35, 36, 41])
def test_one_mistyped_character_is_found_without_a_look_up(position):
    key = secret.make_secret()
    wrong = "A" if key[position] != "A" else "B"
    assert not secret.is_well_formed(key[:position] + wrong + key[position + 1 :])


@pytest.mark.parametrize("text", ["", "mdg_", "sk-" + "a" * 39, "mdg_" + "あ" * 38])
def test_other_texts_are_no_keys(text):
    assert not secret.is_well_formed(text)


def test_the_digest_depends_on_the_secret():
    assert secret.digest_of("key", "one") != secret.digest_of("key", "two")
    assert len(secret.digest_of("key", "one")) == 64
