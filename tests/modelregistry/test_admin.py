"""Operators' pages of the registry."""

import pytest

from modelregistry.models import ServedModel

KEY = "sk-of-the-other-engine"


@pytest.fixture
def model(db) -> ServedModel:
    return ServedModel.objects.create(name="m", engine="external", url="http://10.0.0.1:8000", upstream_key=KEY)


def save(client, model: ServedModel, **changes: str) -> None:
    form = {
        **{"name": model.name, "engine": model.engine, "task": model.task, "url": model.url, "replicas": "1"},
        **{
            "args": "[]",
            "gpus": "[]",
            "allowed_risks": "[]",
            "tensor_parallel": "1",
            "nodes": "1",
            "enabled": "on",
            "upstream_key": "",
            **{"loops": "count", "loop_sensitivity": "normal", "sampling": "{}", "sleep_mode": "stop"},
        },
        **{f"replica_set-{name}_FORMS": "0" for name in ("TOTAL", "INITIAL", "MIN_NUM", "MAX_NUM")},
        **changes,
    }
    response = client.post(f"/admin/modelregistry/servedmodel/{model.pk}/change/", form)
    assert response.status_code == 302, response.content.decode()


def test_the_key_of_an_external_engine_is_never_shown_again(client, olivia, model):
    client.force_login(olivia)
    assert KEY not in client.get(f"/admin/modelregistry/servedmodel/{model.pk}/change/").content.decode()


def test_an_empty_field_keeps_that_key_and_a_new_value_replaces_it(client, olivia, model):
    client.force_login(olivia)
    save(client, model, description_en="changed")
    model.refresh_from_db()
    assert (model.description_en, model.upstream_key) == ("changed", KEY)
    save(client, model, upstream_key="another")
    model.refresh_from_db()
    assert model.upstream_key == "another"


def test_an_empty_field_for_sampling_sets_nothing(client, olivia, model):
    client.force_login(olivia)
    save(client, model, sampling='{"temperature": {"default": 0.6}}')
    model.refresh_from_db()
    assert model.sampling == {"temperature": {"default": 0.6}}
    save(client, model, sampling="")
    model.refresh_from_db()
    assert model.sampling == {}


def test_people_who_are_no_operators_do_not_get_in(client, bob, model):
    client.force_login(bob)
    assert client.get(f"/admin/modelregistry/servedmodel/{model.pk}/change/").status_code == 302
