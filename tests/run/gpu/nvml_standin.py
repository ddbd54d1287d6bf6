"""A stand-in for NVML whose state is a file, and a process that takes a lease: what the tests of leases start.

As a script, nvml_standin.py DIRECTORY STATE USER STUDY NEED [LIMIT] takes a lease, says so, and holds it until its
standard input is closed.
"""

import json
import sys
from pathlib import Path

from tokenarium.run.gpu.lease import Leases
from tokenarium.run.gpu.nvml import Gpu


class StandIn:
    """GPUs as `state` describes them: a list of the fields of Gpu."""

    def __init__(self, state):
        self.state = Path(state)

    def gpus(self):
        return [Gpu(**fields) for fields in json.loads(self.state.read_text())]


def main(directory, state, user, study, need, limit="4"):
    leases = Leases(Path(directory), StandIn(state), user, int(limit))
    with leases.take(study, int(need), say=lambda line: print(line, flush=True), poll=0.01) as lease:
        print("holds", lease.gpu, flush=True)
        sys.stdin.read()
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
