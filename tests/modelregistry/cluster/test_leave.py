"""A host leaves its cluster: engines end, secrets are gone; what cannot be done is said and nothing is forgotten."""

import shutil

import pytest

from modelregistry.cluster import leave, node_directory
from modelregistry.cluster.lease import FencingLease
from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.process import process
from modelregistry.process.process import Life


@pytest.fixture
def directory(tmp_path, issue):
    made = NodeDirectory(path=tmp_path, name="gpu1", address="127.0.0.1", cluster="127.0.0.1:6377")
    shutil.copytree(issue("gpu1"), made.secrets)
    FencingLease(made.lease).prepare()
    made.save()
    return made


def test_engines_end_and_nothing_that_opens_the_cluster_is_left(directory, runs, sleeper, capsys):
    run = runs.start("r1", sleeper, label={}, grace=1.0)
    assert leave.main(directory.path) == 0
    assert process.life_of(run) is Life.ENDED
    assert not directory.secrets.exists()
    assert not directory.lease.exists()
    with pytest.raises(ValueError, match="not the directory"):
        node_directory.load(directory.path)


def test_a_machine_that_has_not_joined_cannot_leave(tmp_path, capsys):
    assert leave.main(tmp_path) == 1
    assert "not the directory" in capsys.readouterr().err


def test_a_disk_that_fails_is_named_and_nothing_is_forgotten(directory, monkeypatch, capsys):
    def fail(_self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("modelregistry.process.process.Runs.all", fail)
    assert leave.main(directory.path) == 1
    assert "Input/output error" in capsys.readouterr().err
    assert directory.secrets.exists()
