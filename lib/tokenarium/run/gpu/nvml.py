"""What is asked of NVIDIA's management library (NVML), so small that a test can stand in for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenarium.errors import TokenariumError

MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """A GPU at one moment. total, free: MiB. processes: process id -> MiB, None where the driver does not tell."""

    uuid: str
    name: str
    total: int
    free: int
    processes: Mapping[int, int] | None = None


class Nvml(Protocol):
    """Where the state of the GPUs comes from."""

    def gpus(self) -> list[Gpu]:
        """The GPUs that this process may use, as they are now."""
        ...


class Driver:
    """NVML of the driver, through the package nvidia-ml-py.

    Raises TokenariumError without the package and when the driver does not answer.
    """

    def __init__(self) -> None:
        try:
            import pynvml  # the extra `gpu`; imported only where there is a GPU
        except ImportError:
            raise TokenariumError("a GPU is shared by asking NVML: pip install 'tokenarium[gpu]'") from None
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise TokenariumError(f"the NVIDIA driver does not answer ({error}): see what nvidia-smi says") from None

    def gpus(self) -> list[Gpu]:
        nvml = self._nvml
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
            known = dict(zip(uuids, handles, strict=True))
            names = visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))
            return [self._gpu(uuid, known.get(uuid) or nvml.nvmlDeviceGetHandleByUUID(uuid)) for uuid in names]
        except nvml.NVMLError as error:
            raise TokenariumError(f"the NVIDIA driver does not answer ({error}): see what nvidia-smi says") from None

    def _gpu(self, uuid: str, handle: Any) -> Gpu:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        name = _text(self._nvml.nvmlDeviceGetName(handle))
        return Gpu(uuid, name, memory.total // MIB, memory.free // MIB, self._processes(handle))

    def _processes(self, handle: Any) -> dict[int, int] | None:
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._nvml.NVMLError:
            return None
        # In a container the driver tells the ids of the host, which mean nothing here.
        if any(each.usedGpuMemory is None or not Path(f"/proc/{each.pid}").exists() for each in running):
            return None
        return {each.pid: each.usedGpuMemory // MIB for each in running}


def visible(uuids: Sequence[str], setting: str | None) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order.

    uuids: all of the machine, in NVML's order, which numbers in the setting count in. As in CUDA, names may be cut
    short and the list ends at the first entry that names none; parts of a GPU ("MIG-...") are kept as they are.
    """
    if setting is None:
        return list(uuids)
    chosen: list[str] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.startswith("MIG-"):
            found = [entry]
        elif entry.isdecimal():
            found = list(uuids[int(entry) : int(entry) + 1])
        else:
            found = [uuid for uuid in uuids if entry and uuid.startswith(entry)]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen += found
    return chosen


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
