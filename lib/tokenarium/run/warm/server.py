"""The fork server: imports what is slow to import, then forks a kernel for every request on its socket.

It starts neither threads nor CUDA; where an import does, it says so and every kernel is an ordinary one. It ends after
a while without kernels, when its sources or its socket are gone, or when it is asked to, but not before its kernels.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import json
import multiprocessing
import os
import pkgutil
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenarium
from tokenarium.run.warm import identity

IDLE_SECONDS = 900.0
TICK_SECONDS = 5.0
REQUEST_SECONDS = 10.0
DEFAULTS = {  # of the imports; a kernel's own variables replace them
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # what ipykernel gives matplotlib unless told otherwise
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's memory would be returned by a thread
}
PACKAGES = (
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "accelerate",
    "safetensors.torch",
    "matplotlib.pyplot",
    "pandas",
    "seaborn",
    "scipy.stats",
    "xarray",
    "tqdm.auto",
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
)


@dataclass
class Kernel:
    """A forked kernel as its server sees it; `connection` is None when nobody waits for its end."""

    pid: int
    pidfd: int
    connection: socket.socket | None
    ended: bool = False


@dataclass
class Request:
    """A kernel to be: its orders, its stdout and stderr, and the connection to the process that asked for it."""

    orders: dict[str, Any]
    streams: list[int]
    connection: socket.socket


def preload() -> str | None:
    """Import the packages and every module of the suite; returns why a fork would not be safe then, or None.

    What cannot be imported is left to the notebook.
    """
    before = set(open_files())
    modules = pkgutil.walk_packages(tokenarium.__path__, "tokenarium.", onerror=lambda name: None)
    suite = [module.name for module in modules if not module.name.startswith("tokenarium.run")]
    for name in (*PACKAGES, *suite):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # OpenBLAS starts threads when numpy is loaded and ends them before a fork; each side starts its own when needed.
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    if threads() > 1:
        return f"the imports left {threads()} threads running"
    if left := [target for descriptor, target in open_files().items() if descriptor not in before]:
        return f"the imports left {left[0]} open"
    gc.collect()
    gc.freeze()  # the collector of a fork leaves these objects alone, so their pages stay shared
    return None


def open_files() -> dict[int, str]:
    """What this process has open, by descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own is gone by now
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def threads() -> int:
    """The number of threads of this process, those of libraries too."""
    return len(os.listdir("/proc/self/task"))


class Server:
    """One process, one thread: accepts requests, forks, tells exit statuses."""

    def __init__(self, listener: socket.socket, path: Path, current: Callable[[], bool], refusal: str | None = None):
        self.listener, self.path, self.current, self.refusal = listener, path, current, refusal
        self.kernels: list[Kernel] = []
        self.used = time.monotonic()
        self.open = True
        self._inode = path.stat().st_ino
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> Request | None:
        """Answer requests until the end. Returns the request in each forked kernel, None in the server itself."""
        while self.open or self.kernels:
            events = self._selector.select(TICK_SECONDS)
            for key, _ in events:
                kernel: Kernel | None = key.data
                if kernel is None:
                    request = self._accept()
                    if request:
                        return request
                elif key.fileobj == kernel.pidfd:
                    self._ended(kernel)
                elif kernel.connection is not None:
                    self._left(kernel)
            idle = not self.kernels and time.monotonic() - self.used > IDLE_SECONDS
            if self.open and not events and (idle or not self._standing() or not self.current()):
                self._close()
        return None

    def _standing(self) -> bool:
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def _close(self) -> None:
        """Take no more requests. Who has connected in this moment gets an ordinary kernel."""
        self.open = False
        if self._standing():
            self.path.unlink()
        self._selector.unregister(self.listener)
        self.listener.close()

    def _accept(self) -> Request | None:
        connection, _ = self.listener.accept()
        connection.settimeout(REQUEST_SECONDS)
        self.used = time.monotonic()
        request = Request({}, [], connection)
        pid = None
        # Whoever asked and gets no answer starts an ordinary kernel.
        with contextlib.suppress(OSError, ValueError):
            request.orders = read_request(connection, request.streams)
            if request.orders.get("retire"):
                self._close()
            elif reason := self.refusal or (f"the fork server has {threads()} threads" if threads() > 1 else None):
                connection.sendall(json.dumps({"cold": reason}).encode())
            else:
                pid = os.fork()
        if pid == 0:
            self._forget()
            return request
        if pid is None:
            connection.close()
        else:
            self._watch(pid, connection)
        for stream in request.streams:
            os.close(stream)
        return None

    def _watch(self, pid: int, connection: socket.socket) -> None:
        kernel = Kernel(pid, os.pidfd_open(pid), connection)
        self.kernels.append(kernel)
        self._selector.register(kernel.pidfd, selectors.EVENT_READ, kernel)
        self._selector.register(connection, selectors.EVENT_READ, kernel)
        with contextlib.suppress(OSError):  # nobody there any more: the selector tells it next
            socket.send_fds(connection, [json.dumps({"pid": pid}).encode()], [kernel.pidfd])

    def _forget(self) -> None:
        """Close, in a forked kernel, what belongs to the server."""
        self._selector.close()
        self.listener.close()
        for kernel in self.kernels:
            os.close(kernel.pidfd)
            if kernel.connection is not None:
                kernel.connection.close()

    def _ended(self, kernel: Kernel) -> None:
        """Tell the exit status, and keep the process id taken until it has been read."""
        kernel.ended = True
        self._selector.unregister(kernel.pidfd)
        told = os.waitid(os.P_PIDFD, kernel.pidfd, os.WEXITED | os.WNOWAIT)
        status = told.si_status if told.si_code == os.CLD_EXITED else -told.si_status
        if kernel.connection is None:
            self._reap(kernel)
        else:
            with contextlib.suppress(OSError):
                kernel.connection.sendall(json.dumps({"status": status}).encode())

    def _left(self, kernel: Kernel) -> None:
        """Whoever asked for the kernel closed the connection: the status has been read, or the process is gone."""
        self._selector.unregister(kernel.connection)
        kernel.connection.close()
        kernel.connection = None
        if kernel.ended:
            self._reap(kernel)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kernel.pid, signal.SIGKILL)

    def _reap(self, kernel: Kernel) -> None:
        os.waitid(os.P_PIDFD, kernel.pidfd, os.WEXITED)
        os.close(kernel.pidfd)
        self.kernels.remove(kernel)
        self.used = time.monotonic()


def read_request(connection: socket.socket, streams: list[int]) -> dict[str, Any]:
    """The orders of one request, a line of JSON; the file descriptors that come with it are added to `streams`.

    Raises OSError when they do not come, ValueError when they are no orders.
    """
    message = b""
    while not message.endswith(b"\n"):
        part, descriptors, _, _ = socket.recv_fds(connection, 65536, 2)
        streams += descriptors
        if not part:
            raise ValueError("no whole request")
        message += part
    return json.loads(message)


def become_kernel(request: Request) -> None:
    """Make this fork what a fresh process would be: session, files, signals, environment, folder and random state."""
    import numpy
    import torch

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, stream in enumerate(request.streams, start=1):
        os.dup2(stream, target)
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    kept = request.connection.fileno()
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    os.umask(request.orders["umask"])
    os.environ.clear()
    os.environ.update(request.orders["env"])
    time.tzset()
    os.chdir(request.orders["cwd"])
    sys.argv = [importlib.util.find_spec("ipykernel_launcher").origin, *request.orders["arguments"]]
    # `random` seeds itself anew after a fork.
    numpy.random.seed()  # noqa: NPY002 (the generator that libraries use unasked)
    torch.default_generator.seed()
    multiprocessing.current_process().authkey = os.urandom(32)
    for name in ("tqdm.auto", "tqdm.autonotebook"):  # which bars they give is decided where they are imported
        sys.modules.pop(name, None)
    threading.Thread(target=_end_with, args=(request.connection,), name="requester", daemon=True).start()


def _end_with(connection: socket.socket) -> None:
    """End this kernel with the process that asked for it, as an ordinary kernel ends with its parent."""
    connection.settimeout(None)
    with contextlib.suppress(OSError):
        while connection.recv(1):
            pass
    os._exit(1)


def run_kernel() -> int:
    """Run ipykernel until it is shut down; returns the exit status."""
    from ipykernel.kernelapp import IPKernelApp

    class WarmKernelApp(IPKernelApp):
        def start(self) -> None:
            """Run until the shutdown, and let the control thread end before the exit functions stop the output thread.

            It has still to flush the outputs when it has answered the request. Where the output thread ends meanwhile,
            it waits for ten seconds; a kernel that ends as fast as a fork does met that about once in forty times.
            """
            super().start()
            if self.control_thread and self.control_thread.is_alive():
                self.control_thread.stop()
                self.control_thread.join()

    try:
        WarmKernelApp.launch_instance(parent_handle=1)  # 1: it polls no parent, `_end_with` does that
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def main() -> None:
    """Serve on the listening socket and the path that the client names, in the background."""
    descriptor, path = int(sys.argv[1]), Path(sys.argv[2])
    if os.fork():
        os._exit(0)  # so that whoever started the server has no child to wait for
    if sys.path[0] in {"", os.getcwd()}:
        del sys.path[0]  # as ipykernel's own launcher does
    status: list[int] = []
    atexit.register(_leave, status)
    environment = dict(os.environ)
    digest = identity.code(environment)

    def current() -> bool:
        try:
            return identity.code(environment) == digest
        except OSError:
            return False

    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    refusal = preload()
    if not current():
        refusal = "the suite changed while the fork server imported it"
    request = Server(socket.socket(fileno=descriptor), path, current, refusal).serve()
    if request:
        become_kernel(request)
        status.append(run_kernel())


def _leave(status: list[int]) -> None:
    """Registered first, so called last: skip the tear-down of thousands of modules, which takes longer than a fork."""
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status[0])


if __name__ == "__main__":
    main()
