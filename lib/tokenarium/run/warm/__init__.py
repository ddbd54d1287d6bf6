"""Warm kernels: a notebook's kernel is forked from a process that has imported the slow packages already.

`provisioner` is what Jupyter calls, `client` finds or starts the fork server, `server` imports, waits and forks.
A forked kernel has everything a fresh one would have: its own session, random state, environment, working directory and
open files. Whatever the server read when it was imported (the suite's sources, the packages, the variables of
`identity.IMPORT_TIME`, limits and namespaces) is part of the name of its socket, so that a kernel never meets a server
that was made otherwise. One thing is shared by all kernels of a server where an ordinary kernel draws its own: the seed
of string hashes, unless PYTHONHASHSEED sets it. When anything is off, the kernel is an ordinary one and a line in the
log says why.
"""


class ColdKernel(Exception):
    """Why this kernel has to be an ordinary one."""
