"""What Jupyter calls to start a kernel: a fork of the warm server, or an ordinary process where that cannot be."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import socket
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from tokenarium.run.warm import ColdKernel, client, identity

_log = logging.getLogger(__name__)  # not Jupyter's own, which papermill and scripts leave without a handler


class WarmProvisioner(LocalProvisioner):
    """The entry point `tokenarium-warm` of jupyter_client.kernel_provisioners."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork a warm kernel, or launch an ordinary one and log why."""
        try:
            connection = client.ask(cmd, **LocalProvisioner._scrub_kwargs(kwargs))
            await _readable(connection)
            self.process = client.answer(connection)
        except ColdKernel as reason:
            if not identity.switched_off():
                _log.warning("an ordinary kernel instead of a warm one: %s", reason)
            return await super().launch_kernel(cmd, **kwargs)
        self.pid = self.pgid = self.process.pid  # it leads a session and group of its own
        self.cwd = kwargs.get("cwd", pathlib.Path.cwd())
        return self.connection_info


async def _readable(connection: socket.socket) -> None:
    """Wait for the answer without holding up the other kernels of a Jupyter server."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), client.ANSWER_SECONDS)
    except TimeoutError:
        connection.close()
        raise ColdKernel(f"the fork server did not answer within {client.ANSWER_SECONDS:.0f} s") from None
    finally:
        loop.remove_reader(connection)
