"""E11: operators see which version of an engine a model follows, and hear of one that failed."""

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone, translation

from modelregistry.models import EngineTrial, Host, HostReport, ServedModel
from portal.notifications.models import Notice
from portal.notifications.types import KINDS
from portal.operations.forms import ServedModelForm
from tests.modelregistry import paper_models
from tests.translations import japanese  # noqa: F401 - a fixture

pytestmark = pytest.mark.django_db


@pytest.fixture
def model():
    return ServedModel.objects.create(name="m", engine="vllm", path="/m", host=Host.objects.create(name="gpu-01"))


def tried(model, version, state, **more):
    values = {"host": model.host, "launcher": "vllm", "stamp": "s", "at": timezone.now(), **more}
    return EngineTrial.objects.create(model=model, version=version, state=state, **values)


def test_e11_operators_are_told_once_of_each_version_that_failed(model, olivia, alice):
    tried(model, "0.32.0", "proven")
    assert not Notice.objects.exists()
    failed = tried(model, "0.33.0", "failed", cause="driver", detail="CUDA driver version is insufficient")
    failed.save()
    notice = Notice.objects.get()
    assert (notice.user, notice.kind, notice.path) == (olivia, "engine-version-failed", "/operations/models/m/")
    for language in ("en", "ja"):
        with translation.override(language):
            text = KINDS[notice.kind].text(notice.facts)
            assert ["gpu-01" in text, "0.33.0" in text] == [True, True]
            assert "0.33.0" in KINDS[notice.kind].title(notice.facts)
    failed.stamp = "anew"
    failed.save()
    assert Notice.objects.count() == 2


def test_e11_the_page_shows_what_is_followed_and_what_was_tried(model, olivia, client):
    client.force_login(olivia)
    tried(model, "0.33.0", "failed", cause="driver")
    page = client.get("/operations/models/m/").content.decode()
    assert page.count('data-trial="failed"') == 1
    assert "0.33.0" in page.partition("data-trial")[2].partition("</span>")[0]
    ServedModel.objects.update(engine_version="0.32.0")
    page = client.get("/operations/models/m/").content.decode()
    assert "0.32.0" in page.partition("data-version")[2].partition("</dd>")[0]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"engine": "vllm", "engine_version": "0.32.0"}, False),  # of another host: not to be seen from here
        ({"engine": "vllm", "engine_version": "newest"}, True),
        ({"engine": "llama.cpp", "engine_version": "2026.10.11549"}, True),  # of which launcher?
        ({"engine": "llama.cpp", "engine_version": "2026.10.11549", "launcher": "xllamacpp"}, False),
        ({"engine": "external", "url": "http://10.0.0.5:8000", "path": "", "engine_version": "1"}, True),
    ],
)
def test_e11_a_pin_is_a_version_that_there_can_be(model, fields, wrong):
    one = ServedModel(**{"name": "pinned", "path": "/m", "host": model.host, **fields})
    found = {}
    try:
        one.full_clean()
    except ValidationError as error:
        found = error.message_dict
    assert ("engine_version" in found) is wrong, found


def test_e11_a_pin_of_this_machine_must_be_installed(tmp_path):
    path = paper_models.gguf(tmp_path / "m.gguf")
    one = ServedModel(name="m", engine="llama.cpp", launcher="xllamacpp", path=str(path), engine_version="1999.1")
    with pytest.raises(ValidationError) as refusal:
        one.full_clean()
    assert set(refusal.value.message_dict) == {"engine_version"}


def test_the_form_names_the_versions_that_are_installed():
    for name, versions in (("gpu-01", ["0.32.0"]), ("gpu-02", ["0.31.0", "0.32.0"])):
        host = Host.objects.create(name=name)
        HostReport.objects.create(host=host, devices=[], engines={}, installed={"vllm": versions}, at=timezone.now())
    assert "vllm 0.31.0, 0.32.0" in str(ServedModelForm()["engine_version"].help_text)
