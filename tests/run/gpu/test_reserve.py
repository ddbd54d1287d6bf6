"""What a study does about the GPU: nothing where there is none, and a lease, with a cap, before it touches CUDA."""

import io
import json
import subprocess
import sys
import types

import pytest
import torch
from nvml_standin import StandIn
from rich.console import Console

from tokenarium.errors import TokenariumError
from tokenarium.run import gpu
from tokenarium.run.gpu import CONTEXT, confine, reserve
from tokenarium.run.gpu.lease import Leases
from tokenarium.run.gpu.show import show_gpus
from tokenarium.study import open_study
from tokenarium.study import study as study_module

PARAMS = {
    "papers": {"tiny": {}, "small": {}},
    "resources": {"stages": {"paper@tiny": {"gpu_memory_gb": 4}, "paper@small": {"gpu_memory_gb": 1}}},
}
FOUR_GB = 3815 + CONTEXT  # MiB, rounded up


@pytest.fixture
def leases(tmp_path, monkeypatch):
    """The leases of a machine with one GPU of 16,000 MiB, and a process that holds none."""
    state = tmp_path / "nvml.json"
    state.write_text(json.dumps([{"uuid": "GPU-a", "name": "a [bold]GPU[/]", "total": 16_000, "free": 15_000}]))
    monkeypatch.setattr(gpu, "_mine", None)
    yield Leases(tmp_path / "leases", StandIn(state), "anna", 2)
    if gpu._mine:
        gpu._mine.release()


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_no_profile_but_gpu_takes_a_lease(leases, profile):
    assert reserve(PARAMS, "paper@tiny", profile, leases) is None
    assert not leases.directory.exists()


def test_without_a_gpu_nothing_is_asked_and_nvml_is_never_imported():
    code = """
import sys
from tokenarium.run import gpu
gpu.NODES = ("/nowhere/nvidiactl",)
assert gpu.reserve({}, "paper@tiny", "gpu") is None
assert gpu.reserve({}, "paper@tiny", "cpu") is None
assert not {"pynvml", "torch", "filelock", "yaml", "tokenarium.run.gpu.lease"} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opening_a_study_without_a_gpu_never_imports_nvml(project, monkeypatch):
    monkeypatch.setattr(gpu, "NODES", ())
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for profile in ("smoke", "cpu", "gpu"):
        study = open_study("tiny", profile=profile, root=project)
        assert study.lease is None
        assert study.device.type != "cuda"


def test_a_study_reserves_what_it_declares_and_what_cuda_itself_takes(leases):
    lease = reserve(PARAMS, "paper@tiny", "gpu", leases)
    assert (lease.gpu, lease.need) == ("GPU-a", FOUR_GB)
    (record,) = leases.records()
    assert (record.study, record.need) == ("paper@tiny", FOUR_GB)


def test_a_stage_that_declares_no_gpu_memory_runs_on_the_cpu_and_says_so(leases, capsys):
    assert reserve(PARAMS | {"resources": {}}, "paper@tiny", "gpu", leases) is None
    assert "paper@tiny declares no gpu_memory_gb" in capsys.readouterr().out


def test_a_gpu_that_is_hidden_is_none(leases):
    leases.nvml.state.write_text("[]")
    assert reserve(PARAMS, "paper@tiny", "gpu", leases) is None


def test_a_process_has_one_lease_which_serves_smaller_studies(leases):
    first = reserve(PARAMS, "paper@tiny", "gpu", leases)
    assert reserve(PARAMS, "paper@small", "gpu", leases) is first
    assert reserve(PARAMS, "paper@tiny", "gpu", leases) is first
    assert len(leases.records()) == 1


def test_a_larger_study_in_the_same_process_is_refused_with_the_mend(leases):
    reserve(PARAMS, "paper@small", "gpu", leases)
    with pytest.raises(TokenariumError, match=r"paper@tiny needs 4\.5 GB .* restart the kernel"):
        reserve(PARAMS, "paper@tiny", "gpu", leases)


def test_a_lease_that_was_given_back_makes_room_for_another(leases):
    reserve(PARAMS, "paper@small", "gpu", leases).release()
    assert reserve(PARAMS, "paper@tiny", "gpu", leases).need == FOUR_GB


@pytest.fixture
def cuda(monkeypatch):
    """PyTorch that sees two GPUs; keeps what it is told."""
    told = {}
    properties = [types.SimpleNamespace(uuid="b", total_memory=1), types.SimpleNamespace(uuid="a", total_memory=16e9)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(properties))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties[index])
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: told.update(device=index))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, index: told.update(share=share, capped=index)
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    told["properties"] = properties
    return told


def test_the_process_is_capped_at_what_it_declares_on_the_gpu_of_its_lease(leases, cuda):
    import os

    confine(reserve(PARAMS, "paper@tiny", "gpu", leases))
    assert (cuda["device"], cuda["capped"]) == (1, 1)
    assert cuda["share"] == pytest.approx(4 / 16, rel=1e-3)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a"


def test_a_gpu_that_pytorch_does_not_see_is_one_clear_line_and_its_lease_is_given_back(leases, cuda):
    del cuda["properties"][1]
    with pytest.raises(TokenariumError, match="does not see the GPU GPU-a: install its CUDA build"):
        confine(reserve(PARAMS, "paper@tiny", "gpu", leases))
    assert leases.records() == []


def test_a_study_at_profile_gpu_has_its_lease_before_it_has_a_device(project, leases, cuda, monkeypatch):
    with open(project / "params.yaml", "a") as file:
        file.write("resources: {stages: {paper@tiny: {gpu_memory_gb: 4}}}\n")
    monkeypatch.setattr(study_module, "reserve", lambda params, stage, profile: reserve(params, stage, profile, leases))
    assert open_study("tiny", profile="cpu", root=project).lease is None
    assert "device" not in cuda
    study = open_study("tiny", profile="gpu", root=project)
    assert study.lease.need == FOUR_GB
    assert study.device.type == "cuda"
    assert "device" in cuda


def shown(leases):
    out = io.StringIO()
    show_gpus(leases, Console(file=out, width=120))
    return out.getvalue()


def test_the_command_shows_who_holds_what_and_who_waits(leases):
    assert "Nobody holds a lease." in shown(leases)
    bob = Leases(leases.directory, leases.nvml, "[red]bob", 2)
    with leases.take("paper@tiny", 9000):
        seen = []
        with pytest.raises(TokenariumError, match="no GPU memory"):
            bob.take("paper@small", 8000, say=lambda line: seen.append(shown(leases)), poll=0.01, timeout=0.02)
    (text,) = seen
    header, gpu_line, _, _, holds, waits = text.splitlines()
    assert header.split() == ["GPU", "name", "total", "leased", "other", "programs", "free", "for", "leases"]
    assert gpu_line.split() == ["0", "a", "[bold]GPU[/]", "16.8", "GB", "9.4", "GB", "0.0", "GB", "7.3", "GB"]
    assert holds.split()[:6] == ["holds", "GPU", "0", "paper@tiny", "anna", holds.split()[5]]
    assert waits.split()[:7] == ["waits,", "1.", "in", "the", "queue", "paper@small", "[red]bob"]


def test_the_command_says_that_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr("tokenarium.run.gpu.show.NODES", ())
    assert shown(None) == "No GPU here.\n"
