"""`make release`: what is in a bundle, and that the same commit gives the same bytes."""

import hashlib
import json
import subprocess
import zipfile

import pytest

from tests.release.bundles import WHEN, release

pytestmark = pytest.mark.timeout(300)


def test_the_same_commit_gives_the_same_bytes_elsewhere_and_under_another_umask(repository, archive, tmp_path):
    subprocess.run(["git", "clone", "--quiet", repository, tmp_path / "clone"], check=True)
    done = release(tmp_path / "clone", tmp_path, umask=0o077, LANG="ja_JP.UTF-8", TZ="Asia/Tokyo")
    assert done.returncode == 0, done.stderr
    assert (
        hashlib.sha256((tmp_path / archive.name).read_bytes()).digest() == hashlib.sha256(archive.read_bytes()).digest()
    )


def test_the_sum_beside_it_is_its_own(archive):
    subprocess.run(["sha256sum", "--check", "--quiet", f"{archive.name}.sha256"], cwd=archive.parent, check=True)


def test_its_manifest_holds_the_sum_of_every_file(first):
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=first, check=True)
    listed = {line.split("  ", 1)[1] for line in (first / "SHA256SUMS").read_text().splitlines()}
    there = {str(path.relative_to(first)) for path in first.rglob("*") if path.is_file()}
    assert there - listed == {"SHA256SUMS"}


def test_all_is_there_as_wheels_and_nothing_has_to_be_compiled(first):
    names = {path.name for path in (first / "wheels").iterdir()}
    assert all(name.endswith(".whl") for name in names)
    assert {"python_ldap", "pip", "django", "async_timeout"} <= {name.split("-")[0].lower() for name in names}


def test_the_wheel_holds_translations_static_files_and_what_pages_load_of_others(first):
    (wheel,) = (first / "product").iterdir()
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        served = json.loads(content.read("static/staticfiles.json"))["paths"]
    assert {"portal/locale/ja/LC_MESSAGES/django.mo", "manage.py", "apiproxy/dataplane/shared_queue.lua"} <= names
    assert f"static/{served['vendor/chart.umd.min.js']}" in names
    assert not [name for name in names if name.startswith(("tests/", "var/"))]
    # `up` warns of a text that is newer than what was compiled of it, and a wheel is unpacked in any order.
    assert not [name for name in names if name.endswith(".po")]


def test_the_bill_of_materials_names_each_package_with_its_sum(first):
    bill = json.loads((first / "sbom.json").read_text())
    sums = {row["hashes"][0]["content"] for row in bill["components"] if row["purl"].startswith("pkg:pypi/")}
    assert sums == {hashlib.sha256(path.read_bytes()).hexdigest() for path in (first / "wheels").iterdir()}
    assert "pkg:npm/chart.js" in {row["purl"].rpartition("@")[0] for row in bill["components"]}
    assert bill["metadata"]["timestamp"].replace("+00:00", "Z") == WHEN
    assert len({row["bom-ref"] for row in bill["components"]}) == len(bill["components"])


def test_licences_of_python_and_of_browsers_packages_are_there(first):
    folders = {path.name for path in (first / "licences").iterdir()}
    assert {"django", "chart.js", "marked"} <= folders


@pytest.mark.parametrize("name", ["README.md", "new.py"])
def test_what_is_not_committed_is_refused_if_it_is_tracked(repository, tmp_path, name):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", repository, clone], check=True)
    (clone / name).write_text("changed")
    subprocess.run(["git", "add", name], cwd=clone, check=True)
    done = release(clone, tmp_path / "dist")
    assert done.returncode != 0
    assert name in done.stderr
    assert not (tmp_path / "dist").exists()
