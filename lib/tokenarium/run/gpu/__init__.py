"""A GPU that several people share: a study reserves the memory that it declares before it touches CUDA."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenarium.errors import TokenariumError

if TYPE_CHECKING:
    from tokenarium.run.gpu.lease import Lease, Leases

NODES = ("/dev/nvidiactl", "/dev/dxg")  # where the driver of Linux, and that of WSL, lets itself be found
CONTEXT = 512  # MiB that CUDA itself takes in a process, beyond what PyTorch counts and caps

_mine: Lease | None = None


def reserve(params: Mapping[str, Any], stage: str, profile: str, leases: Leases | None = None) -> Lease | None:
    """The lease of this process on the GPU memory that `stage` ("paper@pitome") declares, waited for if need be.

    None, at the cost of a look at two files, at any profile but gpu and on a machine without a GPU; None, with a line
    that says so, for a stage that declares no `gpu_memory_gb`: it runs on the CPU. A process has one lease, which
    serves a second study that needs no more. leases: the machine's by default.
    Raises TokenariumError for a second study that needs more, and what `Leases.take` raises.
    """
    global _mine
    if profile != "gpu" or (leases is None and not any(map(os.path.exists, NODES))):
        return None
    from tokenarium.run.gpu.lease import Leases, gigabytes
    from tokenarium.run.resources import resources_of

    declared = resources_of(params, stage).gpu_memory_gb
    if not declared:
        print(f"{stage} declares no gpu_memory_gb under `resources` in params.yaml: it runs on the CPU")
        return None
    need = math.ceil(declared * 1e9 / 2**20) + CONTEXT
    if _mine is not None and _mine.held:
        if _mine.need < need:
            raise TokenariumError(
                f"{stage} needs {gigabytes(need)} of GPU memory and this process holds {gigabytes(_mine.need)}: "
                "restart the kernel and open the larger study first"
            )
        return _mine
    leases = leases or Leases()
    if not leases.nvml.gpus():
        return None  # hidden by CUDA_VISIBLE_DEVICES
    _mine = leases.take(stage, need)
    return _mine


def confine(lease: Lease) -> None:
    """Let this process see CUDA on the GPU of its lease alone, and allocate no more there than it declared.

    Raises TokenariumError when PyTorch cannot use that GPU.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = lease.gpu  # read when CUDA starts, which nothing should have done yet
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        if str(properties.uuid) in lease.gpu:
            torch.cuda.set_device(index)
            share = (lease.need - CONTEXT) * 2**20 / properties.total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, share), index)
            return
    lease.release()
    raise TokenariumError(
        f"PyTorch {torch.__version__} does not see the GPU {lease.gpu}: install its CUDA build, or restart the kernel "
        "if CUDA ran in it before"
    )
