"""Pinned packages: fetched once, checked, unpacked without leaving their folder; each mistake is one line."""

import dataclasses
import errno
import io
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import need_dpkg
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.data import packages
from tokenarium.data.sources import Package
from tokenarium.errors import TokenariumError


def message(package: Package, into: Path) -> str:
    """The one line that collecting a package fails with."""
    with pytest.raises(TokenariumError) as caught:
        packages.collect(package, into)
    text = str(caught.value)
    assert "\n" not in text
    assert package.name in text
    return text


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_exactly_the_wanted_members_are_unpacked(index, client, tmp_path):
    members = packages.collect(index.publish(client), tmp_path / "out")
    assert {name: path.read_bytes() for name, path in members.items()} == {
        "sample/a.txt": b"alpha",
        "sample/b.txt": b"beta",
    }
    assert files_below(tmp_path / "out") == {"sample/a.txt", "sample/b.txt"}


def test_a_download_is_never_fetched_twice(index, client, tmp_path):
    package = index.publish(client)
    packages.collect(package, tmp_path / "first")
    index.archive(client).unlink()
    packages.collect(package, tmp_path / "second")
    assert len(index.calls) == 1


def test_a_scoped_npm_package_is_found(index, tmp_path):
    package = index.publish("npm", name="@scope/sample")
    assert packages.collect(package, tmp_path / "out")["sample/a.txt"].read_bytes() == b"alpha"


def test_a_wrong_digest_names_both_and_the_next_run_fetches_anew(index, client, tmp_path):
    good = index.publish(client)
    index.archive(client).unlink()
    index.publish(client, files={"sample/a.txt": b"other", "sample/b.txt": b"beta"})
    text = message(good, tmp_path / "out")
    assert good.members["sample/a.txt"] in text
    assert "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa" in text  # of b"other"
    assert good.members["sample/b.txt"] not in text
    assert not index.cached()

    index.archive(client).unlink()
    index.publish(client)
    packages.collect(good, tmp_path / "again")
    assert len(index.calls) == 2


def test_a_member_that_is_not_there_is_named(index, client, tmp_path):
    package = index.publish(client)
    wanting = dataclasses.replace(package, members={**package.members, "sample/c.txt": "0" * 64})
    assert "sample/c.txt: expected" in message(wanting, tmp_path / "out")


def test_a_truncated_archive_is_one_line_and_leaves_the_cache(index, client, tmp_path):
    files = {"sample/a.txt": bytes(range(256)) * 4096}
    package = index.publish(client, files=files)
    archive = index.archive(client)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    message(package, tmp_path / "out")
    assert not index.cached()


def test_an_archive_damaged_in_the_cache_is_fetched_anew_by_the_next_run(index, client, tmp_path):
    package = index.publish(client, files={"sample/a.txt": bytes(range(256)) * 4096})
    archive = packages.download(package)
    archive.write_bytes(archive.read_bytes()[:-2000])
    assert "damaged" in message(package, tmp_path / "out") or client == "npm"
    packages.collect(package, tmp_path / "again")
    assert len(index.calls) == 2


@pytest.mark.parametrize("client", ["pip", "npm"])
@pytest.mark.parametrize("name", ["../evil.txt", "sample/../../evil.txt", "/tmp/tokenarium-evil.txt"])
def test_a_member_that_would_leave_its_folder_is_refused(index, client, name, tmp_path):
    package = index.publish(client, files={"sample/a.txt": b"alpha", name: b"evil"})
    harmless = {"sample/a.txt": package.members["sample/a.txt"]}
    text = message(dataclasses.replace(package, members=harmless), tmp_path / "deep" / "out")
    assert "would leave its folder" in text
    assert not list(tmp_path.rglob("evil.txt"))
    assert not Path("/tmp/tokenarium-evil.txt").exists()


def test_a_link_in_the_place_of_a_wanted_member_is_refused(index, client, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    package = index.publish(client, links={"sample/link.txt": str(secret)})
    assert "sample/link.txt is not a plain file" in message(package, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("link.txt"))


def test_a_link_that_nobody_wants_does_no_harm(index, client, tmp_path):
    package = index.publish(client, links={"sample/link": "/etc"})
    wanted = {name: digest for name, digest in package.members.items() if name != "sample/link"}
    packages.collect(dataclasses.replace(package, members=wanted), tmp_path / "out")
    assert files_below(tmp_path / "out") == set(wanted)


@given(
    names=st.lists(
        st.lists(st.sampled_from(["a", "b", "..", ".", "", "c.txt"]), min_size=1, max_size=4).map("/".join),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_no_member_name_reaches_outside_the_target(names):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        home = Path(folder)
        patch.setenv("TOKENARIUM_CACHE", str(home / "cache"))
        archive = home / "cache" / "npm" / "sample" / "1.0" / "sample-1.0.tgz"
        archive.parent.mkdir(parents=True)
        with tarfile.open(archive, "w:gz") as made:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = 1
                made.addfile(entry, io.BytesIO(b"x"))
        package = Package("npm", "sample", "1.0", dict.fromkeys(names, "0" * 64))
        with pytest.raises(TokenariumError):
            packages.collect(package, home / "deep" / "out")
        beside = {path for path in home.rglob("*") if not path.is_relative_to(home / "deep" / "out")}
        assert {path for path in beside if path.is_file()} <= {archive, archive.parent / ".lock"}


@pytest.mark.parametrize(("client", "program"), [("npm", "npm"), ("apt", "apt-get")])
def test_a_missing_client_is_named_with_the_mend(index, client, program, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    text = message(Package(client, "sample", "1.0", {}), tmp_path / "out")
    assert f"{program} was not found" in text
    assert "install" in text or "Debian" in text


def test_a_python_without_pip_is_named_with_the_mend(index, tmp_path, monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    assert "-m ensurepip" in message(Package("pip", "sample", "1.0", {}), tmp_path / "out")


def test_a_missing_dpkg_keeps_the_download(index, tmp_path, monkeypatch):
    need_dpkg()
    package = index.publish("apt")
    packages.download(package)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "dpkg-deb was not found" in message(package, tmp_path / "out")
    assert len(index.cached()) == 1


def test_a_failing_client_is_quoted_with_the_line_that_names_the_reason(index, tmp_path):
    index.script("apt-get", "#!/bin/sh\necho first >&2\necho 'E: Could not resolve deb.example.org' >&2\nexit 100\n")
    assert "E: Could not resolve deb.example.org" in message(Package("apt", "sample", "1.0", {}), tmp_path / "out")
    text = message(Package("npm", "sample", "1.0", {}), tmp_path / "out")
    assert "npm error 404 sample@1.0 is not in this registry" in text
    assert not index.cached()


def test_a_version_that_pip_does_not_find_is_one_line(index, tmp_path):
    index.publish("pip")
    text = message(Package("pip", "sample", "2.0", {}), tmp_path / "out")
    assert "sample==2.0" in text


def test_a_pinned_version_that_apt_no_longer_offers_names_both(index, tmp_path):
    text = message(Package("apt", "sample", "1.0", {}), tmp_path / "out")
    assert "sample 1.0" in text
    assert "9.9-1" in text


def test_root_updates_empty_package_lists_by_itself(index, tmp_path, monkeypatch):
    need_dpkg()
    package = index.publish("apt")
    (index.folder / "no-lists").touch()
    monkeypatch.setattr(packages.os, "geteuid", lambda: 0)
    packages.collect(package, tmp_path / "out")
    assert index.calls == ["sample=1.0", "update", "sample=1.0"]


def test_others_are_told_how_to_fill_empty_package_lists(index, tmp_path, monkeypatch):
    (index.folder / "no-lists").touch()
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    assert "sudo apt-get update" in message(Package("apt", "sample", "1.0", {}), tmp_path / "out")


def test_an_interrupted_download_leaves_nothing_that_counts(index, tmp_path, monkeypatch):
    package = index.publish("npm")
    call = packages._call

    def interrupted(command, folder):
        (folder / "sample-1.0.tgz").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(packages, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packages.collect(package, tmp_path / "out")
    assert not index.cached()
    monkeypatch.setattr(packages, "_call", call)
    packages.collect(package, tmp_path / "out")


def test_what_a_killed_download_left_is_cleared_away(index, tmp_path):
    package = index.publish("npm")
    leftover = packages.cache_directory() / "npm" / "sample" / "1.0" / ".download-killed"
    leftover.mkdir(parents=True)
    (leftover / "sample_1.0.tgz").write_bytes(b"half")
    packages.collect(package, tmp_path / "out")
    assert not leftover.exists()


def test_a_full_disk_while_unpacking_keeps_the_download(index, client, tmp_path, monkeypatch):
    package = index.publish(client)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tokenarium.files.os.fsync", full)
        with pytest.raises(TokenariumError, match=r"sample/a\.txt: No space left on device"):
            packages.collect(package, tmp_path / "out")
    assert files_below(tmp_path / "out") == set()
    packages.collect(package, tmp_path / "out")
    assert len(index.calls) == 1


def test_parallel_fetches_of_one_package_call_its_client_once(index, tmp_path):
    package = index.publish("npm")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: packages.collect(package, tmp_path / f"out{number}"), range(4)))
    assert len(index.calls) == 1


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENARIUM_CACHE", str(tmp_path))
    assert packages.cache_directory() == tmp_path
    monkeypatch.delenv("TOKENARIUM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert packages.cache_directory() == tmp_path / "home" / ".cache" / "tokenarium" / "packages"
