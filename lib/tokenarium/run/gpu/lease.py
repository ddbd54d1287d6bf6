"""Leases of GPU memory, as files in one directory that all users of a machine share.

A process that wants memory puts a file there, is given a ticket, and waits until `queue.plan` lets it start. It keeps
an flock on its file for as long as it lives, and the kernel drops that lock the moment the process is gone, however it
went: so a lease counts exactly as long as its file is locked. That needs no look at process ids, which are used again,
are hidden from other users on some machines, and mean nothing in another container; nor a look at the boot.
"""

from __future__ import annotations

import atexit
import fcntl
import getpass
import json
import os
import re
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from errno import ENOSPC
from pathlib import Path

from filelock import FileLock, Timeout

from tokenarium.errors import TokenariumError
from tokenarium.files import explained
from tokenarium.run.gpu.nvml import Driver, Gpu, Nvml
from tokenarium.run.gpu.queue import Job, Room, plan

DIRECTORY_VARIABLE = "TOKENARIUM_GPU_LEASES"  # the directory; the same for all who share the machine
LIMIT_VARIABLE = "TOKENARIUM_GPU_LIMIT"  # leases that one user may hold at a time
LIMIT = 4
SHARED = (Path("/var/lock"), Path("/tmp"))
LOCK_SECONDS = 60  # the directory is locked for milliseconds; after this long something is wrong
REMIND_SECONDS = 60
LARGEST_FILE = 65536  # bytes of a lease file that are read at all
LARGEST_NEED = 2**24  # MiB
_LEASE = re.compile(r"lease-[0-9a-f]{16}\.json|\.lease-[0-9a-f]{16}\.json\.[0-9a-f]{8}")


_TYPES = {"int": int, "str": str, "float": float, "tuple[str, ...]": tuple}


@dataclass(frozen=True)
class Record:
    """What a lease file says.

    need: MiB; gpus: those it may run on; gpu: the one that it holds, empty while it waits; since: when it came, or got
    its lease (seconds since 1970); namespace: of the process id.
    """

    id: str
    ticket: int
    user: str
    pid: int
    namespace: int
    study: str
    need: int
    limit: int
    gpus: tuple[str, ...]
    gpu: str
    since: float


class Lease:
    """Memory that this process holds until it ends or calls `release`. gpu: NVML's name of the GPU; need: MiB."""

    def __init__(self, leases: Leases, record: Record, descriptor: int):
        self._leases, self._record, self._descriptor = leases, record, descriptor
        atexit.register(self.release)

    @property
    def gpu(self) -> str:
        return self._record.gpu

    @property
    def need(self) -> int:
        return self._record.need

    @property
    def held(self) -> bool:
        """Whether it was not given back."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Give the memory back; a second call, and one in a forked child, does nothing."""
        atexit.unregister(self.release)
        if self._descriptor >= 0 and os.getpid() == self._record.pid:
            self._leases._remove(self._record, self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Lease({self._record.study!r}, {gigabytes(self.need)} of {self.gpu})"


class Leases:
    """The leases of a machine.

    directory: where their files lie; by default what TOKENARIUM_GPU_LEASES says, else `tokenarium-gpu` in /var/lock or,
    where not everybody may write there, in /tmp. It is made on the first lease, for everybody to write in and with
    nobody able to remove the files of others. nvml: where free memory is asked. user, limit: who asks, and how many
    leases that user may hold (TOKENARIUM_GPU_LIMIT, else 4).
    """

    def __init__(
        self, directory: Path | None = None, nvml: Nvml | None = None, user: str | None = None, limit: int | None = None
    ):
        self.directory = directory or default_directory()
        self._nvml = nvml
        self.user = user or _user()
        self.limit = limit or _limit()

    @property
    def nvml(self) -> Nvml:
        """Where free memory is asked: the driver, unless something stands in for it."""
        self._nvml = self._nvml or Driver()
        return self._nvml

    def take(
        self,
        study: str,
        need: int,
        say: Callable[[str], None] = print,
        timeout: float | None = None,
        poll: float = 0.5,
    ) -> Lease:
        """Wait for `need` MiB on one GPU and hold them.

        say: told for whom and for how long this waits, at once, when it changes and every minute. timeout, poll:
        seconds to wait at most (for ever without it) and between two looks.
        Raises TokenariumError when no GPU is that large, when the time is over, and for a directory that is unsafe.
        """
        sizes = {gpu.uuid: gpu.total for gpu in self.nvml.gpus()}
        large = tuple(uuid for uuid, total in sizes.items() if total >= need)
        if not large:
            largest = f"the largest here has {gigabytes(max(sizes.values()))}" if sizes else "there is none"
            raise TokenariumError(f"{study} declares {gigabytes(need)} of GPU memory, and {largest}: declare less")
        self._make_directory()
        record = Record(
            secrets.token_hex(8),
            0,
            self.user,
            os.getpid(),
            _namespace(),
            study,
            need,
            self.limit,
            large,
            "",
            time.time(),
        )
        descriptor, started, said, spoken = -1, time.monotonic(), "", 0.0
        try:
            with self._locked():
                ticket = 1 + max((each.ticket for each in self._scan()), default=0)
                record = replace(record, ticket=ticket)
                descriptor = self._put(record)
            while True:
                with self._locked():
                    records, gpus = self._scan(), self.nvml.gpus()
                    place = _plan(records, gpus).get(record.id)
                    if place is not None:
                        record = replace(record, gpu=place, since=time.time())
                        descriptor = self._put(record, descriptor)
                waited = time.monotonic() - started
                if place is not None:
                    if said:
                        say(f"{study}: {gigabytes(need)} of GPU memory after {duration(waited)}")
                    return Lease(self, record, descriptor)
                whom = _whom(record, records)
                reason = f"{whom}; {gigabytes(need)} needed, {_left(record, records, gpus)} free for leases"
                if timeout is not None and waited >= timeout:
                    raise TokenariumError(f"{study}: no GPU memory within {duration(timeout)}; {reason}")
                if whom != said or waited - spoken >= REMIND_SECONDS:
                    say(f"{study}: waiting, {duration(waited)} so far; {reason}")
                    said, spoken = whom, waited
                time.sleep(poll if timeout is None else max(0.0, min(poll, timeout - waited)))
        except BaseException:
            self._remove(record, descriptor)
            raise

    def records(self) -> list[Record]:
        """The leases and those who wait, in order of their tickets, of all users."""
        if not self.directory.is_dir():
            return []
        with self._locked():
            return sorted(self._scan(), key=lambda record: record.ticket)

    def _make_directory(self) -> None:
        with explained(self.directory):
            if not self.directory.exists():
                # Made beside it and renamed: nobody sees it without its mode, which mkdir would cut by the umask.
                made = self.directory.with_name(f".{self.directory.name}.{secrets.token_hex(4)}")
                made.mkdir(parents=True)
                made.chmod(0o1777)
                try:
                    made.rename(self.directory)
                except OSError:  # somebody was faster
                    made.rmdir()
            found = self.directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or (found.st_mode & 0o1777 != 0o1777 and found.st_uid != os.getuid()):
            raise TokenariumError(
                f"{self.directory} is no directory that all users may write in and only they may clear (mode 1777): "
                f"have its owner mend it, or name another with {DIRECTORY_VARIABLE}"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.directory / "lock"
        lock = FileLock(path, mode=0o666, timeout=LOCK_SECONDS)
        try:
            with explained(path):
                lock.acquire()
        except Timeout:
            raise TokenariumError(f"{path} is held by a process that does not go on: `fuser {path}` names it") from None
        try:
            yield
        finally:
            lock.release()

    def _scan(self) -> list[Record]:
        """What the live processes have written. Files of dead ones are removed where this user may."""
        found = []
        for path in self.directory.iterdir():
            if not _LEASE.fullmatch(path.name):
                continue
            alive, text = _look(path)
            if not alive:
                with suppress(OSError):  # another user's: it lies there and does not count
                    path.unlink()
            elif (record := _parse(text)) is not None and path.name == _name(record):
                found.append(record)
        return found

    def _put(self, record: Record, before: int = -1) -> int:
        """Write a lease file, locked from before it has its name on, and drop the lock of the one that it replaces."""
        path = self.directory / _name(record)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        content = json.dumps(asdict(record)).encode()
        with explained(path):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.fchmod(descriptor, 0o644)  # a umask must not hide it from the others
                if os.write(descriptor, content) < len(content):
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
                os.rename(temporary, path)
            except BaseException:
                os.close(descriptor)
                temporary.unlink(missing_ok=True)
                raise
        _open.add(descriptor)
        _close(before)
        return descriptor

    def _remove(self, record: Record, descriptor: int) -> None:
        with suppress(OSError):
            (self.directory / _name(record)).unlink()
        _close(descriptor)


_open: set[int] = set()


def _close(descriptor: int) -> None:
    if descriptor in _open:
        _open.remove(descriptor)
        os.close(descriptor)


def _forget() -> None:
    """A forked child shares the lock, which would then outlive its parent."""
    for descriptor in list(_open):
        _close(descriptor)


os.register_at_fork(after_in_child=_forget)


def default_directory() -> Path:
    """The directory that all users of this machine agree on without being told."""
    named = os.environ.get(DIRECTORY_VARIABLE)
    if named:
        return Path(named)
    everybodys = [folder for folder in SHARED if folder.is_dir() and folder.stat().st_mode & 0o1777 == 0o1777]
    return (everybodys or SHARED)[0] / "tokenarium-gpu"


def rooms(records: Sequence[Record], gpus: Sequence[Gpu]) -> list[Room]:
    """What is left on each GPU beside the leases and the programs that have none.

    A lease counts in full, however little of it is used yet. Where the driver tells what each process uses, the rest
    belongs to other programs; where it does not, only what goes beyond all leases does.
    """
    here, found = _namespace(), []
    for gpu in gpus:
        held = [record for record in records if record.gpu == gpu.uuid]
        reserved, used = sum(record.need for record in held), gpu.total - gpu.free
        if gpu.processes is None or any(record.namespace != here for record in held):
            others = max(0, used - reserved)
            pieces = [others] if others else []
        else:
            pids = {record.pid for record in held}
            others = max(0, used - sum(gpu.processes.get(record.pid, 0) for record in held))
            pieces = [size for pid, size in gpu.processes.items() if pid not in pids]
        free = max(0, min(gpu.total - reserved - others, gpu.free))
        found.append(Room(gpu.uuid, free, (*(record.need for record in held), *pieces)))
    return found


def gigabytes(mib: int) -> str:
    """MiB as people say it: "6.0 GB" (10^9 bytes)."""
    return f"{mib * 2**20 / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds as people say it: "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{max(0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _plan(records: Sequence[Record], gpus: Sequence[Gpu]) -> dict[str, str]:
    holding = Counter(record.user for record in records if record.gpu)
    waiting = [
        Job(record.id, record.ticket, record.user, record.need, record.limit, record.gpus)
        for record in records
        if not record.gpu
    ]
    return plan(rooms(records, gpus), holding, waiting)


def _whom(mine: Record, records: Sequence[Record]) -> str:
    """For whom `mine` waits."""
    held = sorted((record for record in records if record.gpu), key=lambda record: record.ticket)
    own = [record for record in held if record.user == mine.user]
    if len(own) >= mine.limit:
        return f"{mine.user} holds {len(own)} of {mine.limit} leases: {', '.join(map(_whose, own))}"
    before = sorted((each for each in records if not each.gpu and each.ticket < mine.ticket), key=lambda r: r.ticket)
    reserved = [
        f"{_whose(record)} since {time.strftime('%H:%M', time.localtime(record.since))}"
        for record in held
        if record.gpu in mine.gpus
    ]
    parts = [f"before it in the queue: {', '.join(map(_whose, before))}"] if before else []
    parts += [f"held by {', '.join(reserved)}"] if reserved else []
    return "; ".join(parts) or "for programs without a lease"


def _left(mine: Record, records: Sequence[Record], gpus: Sequence[Gpu]) -> str:
    return gigabytes(max((room.free for room in rooms(records, gpus) if room.gpu in mine.gpus), default=0))


def _whose(record: Record) -> str:
    return f"{record.study} of {record.user} ({gigabytes(record.need)}, process {record.pid})"


def _name(record: Record) -> str:
    return f"lease-{record.id}.json"


def _look(path: Path) -> tuple[bool, bytes]:
    """Whether the process of a lease file lives, and what the file holds; nothing where that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True, b""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return True, b""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, os.read(descriptor, LARGEST_FILE)
        return False, b""
    finally:
        os.close(descriptor)


def _parse(text: bytes) -> Record | None:
    """The record of a lease file, None for anything else: others may write what they like in their own files."""
    try:
        values = json.loads(text)
        values["gpus"] = tuple(values["gpus"])
        record = Record(**values)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    typed = all(type(getattr(record, field.name)) is _TYPES[field.type] for field in fields(Record))
    strings = (record.id, record.user, record.study, record.gpu, *record.gpus)
    if not typed or not all(type(each) is str and each.isprintable() for each in strings):
        return None
    return record if 0 < record.need <= LARGEST_NEED and 0 <= record.since < 2**40 else None


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an id without a name, as in many containers
        return str(os.getuid())


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE) or str(LIMIT)
    if not text.isdecimal() or int(text) < 1:
        raise TokenariumError(f"{LIMIT_VARIABLE} must be a whole number above 0, got {text!r}")
    return int(text)
