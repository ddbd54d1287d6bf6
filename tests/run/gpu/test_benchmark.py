"""The benchmark of leases times what it says."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def gpu_lease(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3])  # benchmarks are no part of the package
    module = importlib.import_module("benchmarks.gpu_lease")
    monkeypatch.setattr(module, "REPEATS", 2)
    return module


def test_the_table_has_a_line_for_every_measurement(gpu_lease, monkeypatch, capsys):
    monkeypatch.setattr(gpu_lease, "WAITING", (0, 3))
    gpu_lease.main()
    lines = capsys.readouterr().out.splitlines()
    for start in (
        "no GPU, profile cpu",
        "no GPU, profile gpu",
        "lease taken and given back, 3 waiting",
        "asked, looked",
    ):
        assert any(line.startswith(start) for line in lines), start


def test_a_lease_that_is_there_after_all_is_not_timed_as_refused(gpu_lease, tmp_path):
    leases = gpu_lease.Leases(tmp_path / "leases", gpu_lease.StandIn(), "anna")
    with pytest.raises(AssertionError, match="there is no room"):
        gpu_lease.look(leases)
