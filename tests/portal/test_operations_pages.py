"""Operators' pages: who may see them, what stands there, and what is done from them."""

import pytest

from modelregistry.models import Replica, ServedModel
from tests.fleet import fleet
from tests.pages import serve
from tests.translations import japanese  # noqa: F401

pytestmark = pytest.mark.django_db

ADDRESSES = [
    "/operations/",
    "/operations/models/new/",
    "/operations/models/qwen/",
    "/operations/edit/qwen/",
    "/operations/start/qwen/",
    "/operations/stop/qwen/",
    "/operations/restart/qwen/",
    "/operations/unregister/qwen/",
    "/operations/models/of-nobody/",
]


@pytest.fixture
def as_olivia(client, olivia):
    client.force_login(olivia)
    return client


def read(client, path, **headers) -> str:
    response = client.get(path, headers=headers)
    assert response.status_code == 200
    return response.content.decode()


class TestWhoMaySeeThem:
    @pytest.mark.parametrize("path", ADDRESSES)
    def test_who_is_signed_out_is_sent_to_sign_in(self, client, path):
        serve()
        for response in (client.get(path), client.post(path)):
            assert response.headers["location"] == f"/sign-in/?next={path}"

    @pytest.mark.parametrize("path", ADDRESSES)
    def test_others_are_refused_alike_whether_there_is_something_or_not(self, client, alice, bob, charlie, path):
        serve()
        for who in (alice, bob, charlie):
            client.force_login(who)
            for response in (client.get(path), client.post(path)):
                assert response.status_code == 403
                assert "You may not see this page" in response.content.decode()
        model = ServedModel.objects.get()
        assert (model.enabled, model.generation) == (True, 0)

    def test_only_operators_are_shown_the_way(self, client, alice, olivia):
        client.force_login(alice)
        assert 'href="/operations/"' not in read(client, "/")
        client.force_login(olivia)
        assert 'href="/operations/"' in read(client, "/")


class TestOverview:
    def test_its_cost_does_not_grow_with_models_and_hosts(self, as_olivia, django_assert_num_queries):
        serve("qwen-0")
        # session, user, zone; usage; models, replicas, aliases; hosts
        with django_assert_num_queries(8):
            as_olivia.get("/operations/")
        fleet()
        for number in range(1, 20):
            serve(f"qwen-{number}")
        with django_assert_num_queries(8):
            as_olivia.get("/operations/")

    def test_hosts_are_shown_with_who_holds_their_memory(self, as_olivia):
        fleet()
        page = read(as_olivia, "/operations/")
        assert "NVIDIA RTX 6000 Ada" in page
        assert "41.3 GB of 48.0 GB" in page
        assert "python train_lora.py" in page
        assert "process 48213" in page

    def test_a_silent_host_is_not_believed(self, as_olivia):
        fleet()
        page = read(as_olivia, "/operations/")
        assert "its supervisor has been silent since" in page
        row = page.split('id="model-bge-reranker-v2"')[1].split("</tr>")[0]
        assert "not confirmed" in row
        assert "ready" not in row

    def test_without_a_host_it_says_what_to_do_first(self, as_olivia):
        assert "manage.py supervise" in read(as_olivia, "/operations/")


class TestVerbs:
    def test_a_start_asks_nothing(self, as_olivia):
        model = serve()
        model.enabled = False
        model.save()
        assert as_olivia.get("/operations/start/qwen/").status_code == 405
        response = as_olivia.post("/operations/start/qwen/", follow=True)
        assert "qwen is being started." in response.content.decode()
        assert ServedModel.objects.get().enabled

    @pytest.mark.parametrize("verb", ["stop", "restart", "unregister"])
    def test_what_hurts_asks_first(self, as_olivia, verb):
        model = serve()
        Replica.objects.update(live={"running": 3, "waiting": 1})
        page = read(as_olivia, f"/operations/{verb}/qwen/")
        assert "“qwen”?" in page
        assert "1 waiting" in page
        model.refresh_from_db()
        assert (model.enabled, model.generation) == (True, 0)
        as_olivia.post(f"/operations/{verb}/qwen/", {"generation": "0"})
        done = ServedModel.objects.first()
        assert {"stop": done and not done.enabled, "restart": done and done.generation == 1, "unregister": not done}[
            verb
        ]
