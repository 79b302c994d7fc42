"""Cores: how many a process takes."""

import os
import subprocess
import sys

import pytest

from kedge.cores import own_cores


@pytest.mark.parametrize("given", ["3", "", "0", "many", "4,2"])
def test_cores_are_those_asked_for_or_all_that_may_be_used(given, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert own_cores() == (3 if given == "3" else 1)


def test_cores_are_all_where_nothing_limits_them(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    assert own_cores() == 6
    monkeypatch.undo()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {5}, raising=False)
    assert own_cores() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_process_bound_to_one_core_takes_one(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    bind = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"{bind}; from kedge.cores import own_cores; print(own_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
