"""What Jupyter calls to start a kernel: a fork of the warm server, or an ordinary process where that cannot be."""

from __future__ import annotations

import asyncio
import logging
import pathlib
from typing import Any, Protocol

from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from tokenarium.run.warm import ColdKernel, client, identity
from tokenarium.run.warm.ready import PromptClient

END_SECONDS = 1.0  # within which a kernel that was asked to end mostly has

_log = logging.getLogger(__name__)  # not Jupyter's own, which papermill and scripts leave without a handler


class HasFileno(Protocol):
    """What can be waited for."""

    def fileno(self) -> int:
        """Its file descriptor."""


class WarmProvisioner(LocalProvisioner):
    """The entry point `tokenarium-warm` of jupyter_client.kernel_provisioners."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork a warm kernel, or launch an ordinary one and log why."""
        try:
            connection = client.ask(cmd, **LocalProvisioner._scrub_kwargs(kwargs))
            if not await _readable(connection, client.ANSWER_SECONDS):
                connection.close()
                raise ColdKernel(f"the fork server did not answer within {client.ANSWER_SECONDS:.0f} s")
            self.process = client.answer(connection)
        except ColdKernel as reason:
            if not identity.switched_off():
                _log.warning("an ordinary kernel instead of a warm one: %s", reason)
            return await super().launch_kernel(cmd, **kwargs)
        self.pid = self.pgid = self.process.pid  # it leads a session and group of its own
        self.cwd = kwargs.get("cwd", pathlib.Path.cwd())
        if self.parent.client_factory is AsyncKernelClient:  # nbclient's, and so papermill's
            self.parent.client_factory = PromptClient
        return self.connection_info

    async def shutdown_requested(self, restart: bool = False) -> None:
        """See a warm kernel end as soon as it does; its manager looks every 0.1 s, and goes on if it takes longer."""
        if isinstance(self.process, client.WarmProcess):
            await _readable(self.process, END_SECONDS)


async def _readable(source: HasFileno, seconds: float) -> bool:
    """Whether `source` can be read within this time. Holds up no other kernel of a Jupyter server."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(source, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), seconds)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(source)
    return True
