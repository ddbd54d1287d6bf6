"""Files written whole or not at all, and the digests that tell whether they are the right ones."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from tokenarium.errors import TokenariumError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


@contextmanager
def _full_disk_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise TokenariumError(
            f"cannot write {path}: {os.strerror(error.errno)}; free some disk space and run again"
        ) from error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission met while making or renaming `path` into one clear line.

    Raises TokenariumError for those; every other exception passes unchanged.
    """
    try:
        with _full_disk_explained(path):
            yield
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise TokenariumError(
            f"cannot write {path}: {os.strerror(error.errno)}; check who owns it and what stands in its place"
        ) from error


@contextmanager
def write_whole(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only when the block ends without an error.

    mode: "w" (UTF-8) or "wb". Missing folders are made. The bytes go to a temporary name in the same
    folder, are flushed to disk, then renamed; on any error the temporary file is removed and what stood at
    `path` before is untouched.
    Raises TokenariumError on a full disk or a missing permission, ValueError on another mode.
    """
    if mode not in {"w", "wb"}:
        raise ValueError(f"mode must be 'w' or 'wb', got {mode!r}")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            with explained(path):
                file = stack.enter_context(open(temporary, mode, **text))
            with _full_disk_explained(path):
                yield file
                file.flush()
                os.fsync(file.fileno())
        with explained(path):
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON whole and deterministically: sorted keys, two spaces, UTF-8, a final newline.

    Raises ValueError for NaN and infinities, which are not JSON, and what `write_whole` raises.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    with write_whole(path) as file:
        file.write(text + "\n")


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_directory(staged: Path | str, target: Path | str) -> None:
    """Put the directory `staged` in the place of `target`, on the same file system.

    Two renames: at no moment does `target` hold a mixture of old and new; if the second fails, the
    old one is put back. Raises TokenariumError on a full disk or a missing permission.
    """
    staged, target = Path(staged), Path(target)
    retired = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(target):
            os.rename(staged, target)
            return
        os.rename(target, retired)
        try:
            os.rename(staged, target)
        except BaseException:
            os.rename(retired, target)
            raise
        if retired.is_dir() and not retired.is_symlink():
            shutil.rmtree(retired)
        else:
            retired.unlink()


@contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Hold the lock file `path` during the block; another process waits for it. The empty file stays."""
    path = Path(path)
    with ExitStack() as stack:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "w"))
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
