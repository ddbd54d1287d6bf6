"""A client that knows at once when a kernel is ready; jupyter_client's own waits for 0.2 s without a message."""

from __future__ import annotations

import time
from queue import Empty

import zmq
import zmq.asyncio
from jupyter_client.asynchronous import AsyncKernelClient
from traitlets import default

REPLY_SECONDS = 1.0  # as long as jupyter_client waits before it asks again
STATUS_SECONDS = 0.2
RETRY_MILLISECONDS = 10  # between attempts to connect: the client is there before the kernel; ZeroMQ's own is 100


class PromptClient(AsyncKernelClient):
    """The asynchronous client of Jupyter, ready when the kernel has said that it is idle after a first request."""

    @default("context")
    def _impatient(self) -> zmq.asyncio.Context:
        context = self._context_default()
        context.setsockopt(zmq.RECONNECT_IVL, RETRY_MILLISECONDS)
        return context

    async def wait_for_ready(self, timeout: float | None = None) -> None:
        """Ask until both channels answer. Raises RuntimeError when the kernel dies, or after `timeout` seconds."""
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not await self._answers():
            if not await self.is_alive():
                raise RuntimeError("Kernel died before replying to kernel_info")
            if time.monotonic() > end:
                raise RuntimeError(f"Kernel didn't respond in {timeout:.0f} seconds")

    async def _answers(self) -> bool:
        """Whether a new request is answered, and all that was published before and for it has been read."""
        request = self.kernel_info()
        try:
            while (reply := await self.get_shell_msg(timeout=REPLY_SECONDS))["parent_header"]["msg_id"] != request:
                pass
            while not _ends(request, await self.get_iopub_msg(timeout=STATUS_SECONDS)):
                pass
        except Empty:  # the kernel has not begun to listen, or its publications did not reach us yet
            return False
        self._handle_kernel_info_reply(reply)
        return True


def _ends(request: str, message: dict) -> bool:
    idle = message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
    return idle and message["parent_header"].get("msg_id") == request
