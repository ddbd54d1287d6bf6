"""A study at smoke or cpu works without the network: what a notebook asks of it is refused in one clear line.

Python tells an audit hook of every connection and every look-up of a name before it is made. Loopback addresses and
Unix sockets stay open, since kernels talk to Jupyter over them. Libraries that open sockets past Python are not seen.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

from tokenarium.errors import TokenariumError

_offline: list[str] = []  # the profile that allows no connections; empty while they are allowed
_installed = False


def keep_offline(profile: str) -> None:
    """Refuse connections from now on at smoke and cpu, allow them at gpu; for this process.

    A refused one raises TokenariumError where the notebook made it.
    """
    global _installed
    _offline[:] = [] if profile == "gpu" else [profile]
    if not _installed:
        sys.addaudithook(_refuse)  # for good: Python has no way to take it out again
        _installed = True


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _offline or not event.startswith("socket."):
        return
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
        asking, address = arguments
        if asking.family in {socket.AF_INET, socket.AF_INET6} and address and not _is_loopback(address[0]):
            _raise(f"{address[0]}:{address[1]}")
    elif event in {"socket.getaddrinfo", "socket.gethostbyname"} and not _is_loopback(arguments[0]):
        host = arguments[0]
        _raise(host.decode("ascii", "replace") if isinstance(host, bytes) else str(host))


def _is_loopback(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if not host or host in {"localhost", socket.gethostname()}:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _raise(where: str) -> None:
    raise TokenariumError(
        f"a study at profile {_offline[0]} works offline, but the notebook asked for {where}: "
        "pin what it needs in lib/tokenarium/data, or use profile gpu"
    )
