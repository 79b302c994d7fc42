"""Cores: how many a process takes."""

import os

import pytest

from kedge.cores import own_cores


@pytest.mark.parametrize("given", ["3", "", "0", "many", "4,2"])
def test_cores_are_those_asked_for_or_all(given, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert own_cores() == (3 if given == "3" else os.cpu_count())
