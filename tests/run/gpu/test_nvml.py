"""What is read from NVML, here through a stand-in for its Python package, and which GPUs a process may use."""

import os
import sys
import types

import pytest

from tokenarium.errors import TokenariumError
from tokenarium.run.gpu.nvml import MIB, Driver, Gpu, visible

UUIDS = ["GPU-11aa", "GPU-22bb", "GPU-22cc"]


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        (None, UUIDS),
        ("", []),
        ("-1", []),
        ("1", ["GPU-22bb"]),
        ("2, 0", ["GPU-22cc", "GPU-11aa"]),
        ("0,7,1", ["GPU-11aa"]),  # ends at the first that there is not
        ("0,0,1", ["GPU-11aa"]),
        ("GPU-22cc,0", ["GPU-22cc", "GPU-11aa"]),
        ("GPU-1", ["GPU-11aa"]),
        ("GPU-22", []),  # two names begin so
        ("GPU-33", []),
        ("MIG-5f/1/0", ["MIG-5f/1/0"]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(setting, left):
    assert visible(UUIDS, setting) == left


class Process:
    def __init__(self, pid, used):
        self.pid, self.usedGpuMemory = pid, used


@pytest.fixture
def pynvml(monkeypatch):
    """A stand-in for the package with two GPUs; the tests change its functions."""
    module = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: 2
    module.nvmlDeviceGetHandleByIndex = lambda index: f"handle {index}"
    module.nvmlDeviceGetHandleByUUID = lambda uuid: f"part {uuid}"
    module.nvmlDeviceGetUUID = lambda handle: {"handle 0": "GPU-a", "handle 1": b"GPU-b"}[handle]
    module.nvmlDeviceGetName = lambda handle: handle.upper()
    module.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(total=100 * MIB + 5, free=70 * MIB + 5)
    module.nvmlDeviceGetComputeRunningProcesses = lambda handle: [Process(os.getpid(), 30 * MIB)]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return module


def test_gpus_come_with_their_memory_and_processes(pynvml):
    assert Driver().gpus() == [
        Gpu("GPU-a", "HANDLE 0", 100, 70, {os.getpid(): 30}),
        Gpu("GPU-b", "HANDLE 1", 100, 70, {os.getpid(): 30}),
    ]


def test_only_visible_gpus_are_listed_and_parts_of_one_are_found(pynvml, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,MIG-x")
    assert [(gpu.uuid, gpu.name) for gpu in Driver().gpus()] == [("GPU-b", "HANDLE 1"), ("MIG-x", "PART MIG-X")]


def test_processes_that_mean_nothing_here_are_not_told(pynvml):
    for running in ([Process(os.getpid(), None)], [Process(2**22 + 1, MIB)]):
        pynvml.nvmlDeviceGetComputeRunningProcesses = lambda handle, running=running: running
        assert Driver().gpus()[0].processes is None


def test_a_driver_that_does_not_tell_processes_still_tells_memory(pynvml):
    def refuse(handle):
        raise pynvml.NVMLError("Not Supported")

    pynvml.nvmlDeviceGetComputeRunningProcesses = refuse
    assert Driver().gpus()[0] == Gpu("GPU-a", "HANDLE 0", 100, 70, None)


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_does_not_answer_is_one_clear_line(pynvml, function):
    def refuse(*arguments):
        raise pynvml.NVMLError("Driver/library version mismatch")

    setattr(pynvml, function, refuse)
    with pytest.raises(TokenariumError, match=r"does not answer \(Driver/library version mismatch\): see"):
        Driver().gpus()


def test_without_the_package_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(TokenariumError, match=r"pip install 'tokenarium\[gpu\]'"):
        Driver()


def test_the_real_package_has_every_function_that_is_asked():
    pynvml = pytest.importorskip("pynvml")
    names = ["Init", "DeviceGetCount", "DeviceGetHandleByIndex", "DeviceGetHandleByUUID", "DeviceGetUUID"]
    names += ["DeviceGetName", "DeviceGetMemoryInfo", "DeviceGetComputeRunningProcesses"]
    assert all(callable(getattr(pynvml, f"nvml{name}")) for name in names)
    assert issubclass(pynvml.NVMLError, Exception)
