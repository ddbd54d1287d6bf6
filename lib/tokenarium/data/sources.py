"""What fetched files are made from: pinned packages, or the same content on the Hugging Face hub."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Normalise = Callable[[Mapping[str, Path], Path], None]
"""Reads the fetched members (by their path in the package) and writes the output files into a folder."""

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, what)` before each step."""


@dataclass(frozen=True)
class Package:
    """One pinned package and the members wanted from it.

    client: "pip" (a wheel), "npm" or "apt". members: path in the package -> SHA-256 of its bytes. prefix: put
    before the members' paths where several packages of an asset hold the same ones.
    """

    client: str
    name: str
    version: str
    members: Mapping[str, str]
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.client} package {self.name} {self.version}"


@dataclass(frozen=True)
class Archive:
    """One pinned package as a whole, for the many members whose paths match a pattern.

    wanted: regular expression of whole member paths. sha256: of the listing of these files as `sha256sum` prints it,
    sorted by path.
    """

    client: str
    name: str
    version: str
    sha256: str
    wanted: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.client} package {self.name} {self.version}"


@dataclass(frozen=True)
class Hub:
    """The same content on the Hugging Face hub.

    files: path in the repository -> SHA-256, or None where the hub packs the content differently, so that
    only what is made from it can be checked. normalise: as for an asset, by path in the repository.
    kind: "dataset" or "model".
    """

    repository: str
    files: Mapping[str, str | None]
    normalise: Normalise
    kind: str = "dataset"
    revision: str = "main"

    def __str__(self) -> str:
        return f"Hugging Face {self.kind} {self.repository}"


@dataclass(frozen=True)
class Asset:
    """One directory of pinned files, a data set or a fetched model: what it is made from and what it holds.

    files: output file -> SHA-256. To add an asset, leave a digest empty and fetch: the error names the
    digest that was found. hub: the alternative source, if there is one.
    """

    name: str
    packages: tuple[Package | Archive, ...]
    normalise: Normalise
    files: Mapping[str, str]
    hub: Hub | None = None
