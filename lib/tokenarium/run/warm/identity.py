"""What makes a fork server the right one for a kernel: all that a kernel could not change after it was forked."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tokenarium.run.warm import ColdKernel

SWITCH = "TOKENARIUM_WARM"  # "off" makes every kernel an ordinary one
SUITE = Path(__file__).resolve().parents[2]

# Beginnings of the names of variables that Python, the C library and the packages read once, when they are loaded. The
# number of threads and the seed of string hashes are among them: a forked kernel has those that it asked for.
IMPORT_TIME = (
    *("PYTHON", "LD_", "GLIBC_", "MALLOC_", "LC_", "LANG", "TZ", "HOME", "TMPDIR"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "NUMEXPR_", "NPY_", "NUMPY_", "SCIPY_"),
    *("TORCH", "PYTORCH_", "ATEN_", "DNNL_", "ONEDNN_", "TRITON_", "CUDA_", "CUBLAS_", "CUDNN_", "NCCL_"),
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "RAYON_", "ACCELERATE_", "SAFETENSORS_", "USE_"),
    *("MPL", "MATPLOTLIB", "PANDAS_", "ARROW_", "JE_", "IPYTHON", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"),
)
FORK_TIME = ("CUDA_VISIBLE_DEVICES",)  # read when CUDA starts, which is after the fork
STATUS = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "Cpus_allowed_list", "Mems_allowed_list")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


def switched_off() -> bool:
    """Whether the user wants ordinary kernels."""
    return os.environ.get(SWITCH) == "off"


def runtime_folder() -> Path:
    """The folder of the servers' sockets, which only this user can enter; made where it is missing.

    Raises ColdKernel when something else stands there.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base, "tokenarium") if base else Path(tempfile.gettempdir(), f"tokenarium-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ColdKernel(f"{folder}: {error.strerror}") from None
    if not folder.is_dir() or folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ColdKernel(f"{folder} is not a folder that only you can enter")
    return folder


def place() -> str:
    """Digest of where this process lives: interpreter, suite, user, rights, limits, processors and namespaces."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
        facts = [
            sys.executable,
            str(SUITE),
            [line for line in status if line.startswith(STATUS)],
            [os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES],
            *(Path("/proc/self", name).read_text() for name in ("limits", "cgroup", "oom_score_adj")),
            os.getpriority(os.PRIO_PROCESS, 0),
        ]
    except OSError as error:
        raise ColdKernel(f"{error.filename}: {error.strerror}") from None
    return _digest(facts)


def code(environment: Mapping[str, str]) -> str:
    """Digest of what is imported: the suite's sources, the installed packages, and the variables they read."""
    sources = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(SUITE.rglob("*.py"))]
    # Installing or removing a package changes the folder it lies in.
    packages = [entry for entry in sys.path if os.path.basename(entry) in {"site-packages", "dist-packages"}]
    read = {
        name: value for name, value in environment.items() if name.startswith(IMPORT_TIME) and name not in FORK_TIME
    }
    return _digest([sources, [(entry, os.stat(entry).st_mtime_ns) for entry in sorted(packages)], sorted(read.items())])


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
