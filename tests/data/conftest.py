"""A package index of this machine: the real pip and dpkg-deb, stand-ins for npm and apt-get that copy files."""

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tokenarium.data import packages
from tokenarium.data.sources import Package

CLIENTS = ("pip", "npm", "apt")

_NPM = """#!/bin/sh
for spec; do :; done
cp "$INDEX/$(echo "$spec" | tr '/@' '__').tgz" . || { echo "npm error code E404" >&2
echo "npm error 404 $spec is not in this registry" >&2
echo "npm error 404 Note that you can also install from a tarball" >&2
echo "npm error A complete log of this run can be found in: x.log" >&2; exit 1; }
"""
_APT_GET = """#!/bin/sh
for spec; do :; done
case " $* " in *" update "*) : > "$INDEX/updated"; exit 0;; esac
name=${spec%%=*}; version=${spec#*=}
if [ -e "$INDEX/no-lists" ] && [ ! -e "$INDEX/updated" ]; then
  echo "E: Unable to locate package $name" >&2; exit 100; fi
if [ ! -e "$INDEX/${name}_${version}_all.deb" ]; then
  echo "E: Version '$version' for '$name' was not found" >&2; exit 100; fi
cp "$INDEX/${name}_${version}_all.deb" .
"""
_APT_CACHE = """#!/bin/sh
echo "$2:"; echo "  Candidate: 9.9-1"
"""


class LocalIndex:
    """Packages that the clients find, and the calls made to the clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.calls: list[str] = []
        for name, script in {"npm": _NPM, "apt-get": _APT_GET, "apt-cache": _APT_CACHE}.items():
            self.script(name, script)

    def script(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def publish(
        self,
        client: str,
        name: str = "sample",
        files: Mapping[str, bytes] | None = None,
        links: Mapping[str, str] | None = None,
        version: str = "1.0",
    ) -> Package:
        """Put a package on the index; returns it with its true digests pinned, links with a made-up one."""
        files = files or {"sample/a.txt": b"alpha", "sample/b.txt": b"beta", "sample/unwanted.txt": b"gamma"}
        archive = self.archive(client, name, version)
        make = {"pip": _wheel, "npm": _tgz, "apt": _deb}[client]
        make(archive, name, version, files, links or {})
        wanted = {
            member: hashlib.sha256(data).hexdigest() for member, data in files.items() if "unwanted" not in member
        }
        return Package(client, name, version, wanted | dict.fromkeys(links or {}, "0" * 64))

    def archive(self, client: str, name: str = "sample", version: str = "1.0") -> Path:
        file = {
            "pip": f"{name.replace('-', '_')}-{version}-py3-none-any.whl",
            "npm": f"{name}_{version}.tgz".replace("/", "_").replace("@", "_"),
            "apt": f"{name}_{version}_all.deb",
        }[client]
        return self.folder / file

    def cached(self) -> list[Path]:
        """The archives in the cache, without lock files."""
        found = packages.cache_directory().rglob("*")
        return [path for path in found if path.suffix in {".whl", ".tgz", ".deb"}]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalIndex:
    made = LocalIndex(tmp_path / "index")
    monkeypatch.setenv("TOKENARIUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TOKENARIUM_SOURCE", raising=False)
    monkeypatch.setenv("INDEX", str(made.folder))
    monkeypatch.setenv("PATH", f"{made.bin}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.folder))
    run = subprocess.run

    def counted(command, *arguments, **options):
        if any(word in command for word in ("download", "pack", "update")):
            made.calls.append(command[-1])
        return run(command, *arguments, **options)

    monkeypatch.setattr(packages.subprocess, "run", counted)
    return made


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    if request.param == "apt":
        need_dpkg()
    return request.param


def need_dpkg() -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb to build a package with")


def _wheel(path: Path, name: str, version: str, files: Mapping[str, bytes], links: Mapping[str, str]) -> None:
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
        for member, target in links.items():
            entry = zipfile.ZipInfo(member)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, target)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def _tgz(path: Path, name: str, version: str, files: Mapping[str, bytes], links: Mapping[str, str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member, data in files.items():
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for member, target in links.items():
            entry = tarfile.TarInfo(member)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)


def _deb(path: Path, name: str, version: str, files: Mapping[str, bytes], links: Mapping[str, str]) -> None:
    tree = path.with_suffix(".tree")
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: N. N. <n@example.org>\nDescription: -\n"
    )
    for member, data in files.items():
        (tree / member).parent.mkdir(parents=True, exist_ok=True)
        (tree / member).write_bytes(data)
    for member, target in links.items():
        (tree / member).parent.mkdir(parents=True, exist_ok=True)
        (tree / member).symlink_to(target)
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(tree), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)
