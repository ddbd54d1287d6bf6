"""Packages with too many members to pin one by one: the contents that are wanted are pinned as a whole."""

import hashlib
import re
import tempfile
from pathlib import Path, PurePosixPath

from tokenarium.data import packages
from tokenarium.data.sources import Archive, Package
from tokenarium.errors import TokenariumError
from tokenarium.files import explained


class _Matching:
    """The paths that a pattern matches, as a container."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def __contains__(self, path: str) -> bool:
        return self._pattern.fullmatch(path.removeprefix("./")) is not None


def collect(archive: Archive, into: Path) -> dict[str, Path]:
    """Fetch a package and unpack below `into` the plain files whose paths match; links are left out.

    Debian replaces a package by a later one within a release. Where the pinned version is gone, the version on offer
    serves if the files that match are the pinned ones. Returns path in the package -> unpacked file, sorted by path.
    Raises TokenariumError for other files, whose archive then leaves the cache, for a pattern that matches nothing or
    a path that would leave the folder, and for what `packages.download` names.
    """
    wanted = _Matching(archive.wanted)
    package = Package(archive.client, archive.name, archive.version, wanted)
    path = _download(package)
    listing = []
    with packages._members(path, package) as members:
        for name, file in members:
            if file is None or name not in wanted:
                continue
            member = PurePosixPath(name)
            if member.is_absolute() or ".." in member.parts:
                raise TokenariumError(f"{archive} holds a member that would leave its folder ({name!r})")
            content = file.read()
            listing.append((str(member), hashlib.sha256(content).hexdigest()))
            with explained(into / member):
                (into / member).parent.mkdir(parents=True, exist_ok=True)
                (into / member).write_bytes(content)
    if not listing:
        raise TokenariumError(f"{archive} holds no file that matches {archive.wanted!r}")
    listing.sort()
    found = hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in listing).encode()).hexdigest()
    if found != archive.sha256:
        path.unlink(missing_ok=True)
        raise TokenariumError(
            f"{archive}: its files are not the pinned ones (SHA-256 of their listing expected "
            f"{archive.sha256 or '(none pinned)'}, found {found}); the download was removed, run again to fetch it anew"
        )
    return {name: into / name for name, _ in listing}


def _download(package: Package) -> Path:
    try:
        return packages.download(package)
    except TokenariumError:
        if package.client != "apt":
            raise
        with tempfile.TemporaryDirectory() as folder:
            offered = packages._apt_candidate(package, Path(folder))
        if offered in {package.version, "unknown", "(none)"}:
            raise
        return packages.download(Package(package.client, package.name, offered, package.members))
