"""Packages pinned as a whole: what matches is unpacked, another archive or an unsafe path never."""

import dataclasses
import hashlib
import re

import pytest
from conftest import need_dpkg

from tokenarium.data import archives, fetching
from tokenarium.data.sources import Archive, Asset
from tokenarium.errors import TokenariumError

FILES = (("a", b"alpha"), ("b", b"beta"))  # what the index publishes


def pinned(index, client, wanted=r"sample/[ab]\.txt", **published):
    package = index.publish(client, **published)
    listing = (f"{digest}  {name}\n" for name, digest in sorted(package.members.items()) if re.fullmatch(wanted, name))
    return Archive(client, package.name, package.version, hashlib.sha256("".join(listing).encode()).hexdigest(), wanted)


def test_exactly_the_matching_files_are_unpacked(index, client, tmp_path):
    found = archives.collect(pinned(index, client), tmp_path / "out")
    assert {name: path.read_bytes() for name, path in found.items()} == {
        "sample/a.txt": b"alpha",
        "sample/b.txt": b"beta",
    }
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 2


def test_another_archive_is_named_and_leaves_the_cache(index, client, tmp_path):
    archive = dataclasses.replace(pinned(index, client), sha256="0" * 64)
    with pytest.raises(TokenariumError, match=r"sample 1\.0: its files are not the pinned ones .*expected 0{64}"):
        archives.collect(archive, tmp_path / "out")
    assert not index.cached()


def test_a_later_debian_version_serves_if_its_files_are_the_pinned_ones(index, tmp_path):
    need_dpkg()
    archive = pinned(index, "apt", version="9.9-1")  # the version that the index offers
    gone = dataclasses.replace(archive, version="9.8-1")
    assert list(archives.collect(gone, tmp_path / "out")) == ["sample/a.txt", "sample/b.txt"]
    changed = dataclasses.replace(gone, sha256="0" * 64)
    with pytest.raises(TokenariumError, match="not the pinned ones"):
        archives.collect(changed, tmp_path / "again")


def test_a_pattern_that_matches_nothing_is_named(index, client, tmp_path):
    with pytest.raises(TokenariumError, match="no file that matches"):
        archives.collect(pinned(index, client, wanted="elsewhere/.*"), tmp_path / "out")


def test_links_are_left_out(index, client, tmp_path):
    archive = pinned(index, client, wanted=r"sample/(a|b|link)\.txt", links={"sample/link.txt": "/etc/passwd"})
    digests = "".join(f"{hashlib.sha256(data).hexdigest()}  sample/{name}.txt\n" for name, data in FILES)
    archive = dataclasses.replace(archive, sha256=hashlib.sha256(digests.encode()).hexdigest())
    assert "sample/link.txt" not in archives.collect(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil.txt", "sample/../../evil.txt"])
def test_a_path_that_would_leave_the_folder_is_refused(index, name, tmp_path):
    archive = pinned(index, "npm", wanted=".*", files={"sample/a.txt": b"alpha", name: b"evil"})
    with pytest.raises(TokenariumError, match="would leave its folder"):
        archives.collect(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil.txt"))


def test_packages_with_the_same_members_are_told_apart_by_their_prefix(index, tmp_path):
    digest = hashlib.sha256(b"alpha").hexdigest()
    first = dataclasses.replace(pinned(index, "pip"), prefix="first/")
    second = index.publish("npm", name="other", files={"sample/a.txt": b"alpha"})
    second = dataclasses.replace(second, prefix="second/")

    def normalise(members, output):
        for name in ("first", "second"):
            (output / name).write_bytes(members[f"{name}/sample/a.txt"].read_bytes())

    asset = Asset("both", (first, second), normalise, {"first": digest, "second": digest})
    assert fetching.make(asset, tmp_path / "both")
