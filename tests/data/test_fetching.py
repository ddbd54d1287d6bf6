"""A data set is made once, whole, and only if it is the pinned one; whatever fails leaves the old one alone."""

import dataclasses
import errno
import hashlib
import os

import pytest

from tokenarium import data
from tokenarium.data import fetching, packages
from tokenarium.data.progress import progress_bar
from tokenarium.data.sources import Archive, Asset, Package
from tokenarium.errors import TokenariumError
from tokenarium.files import write_whole


def join(members, output):
    """The normaliser of these tests: all members in one file, in the order of their names."""
    with write_whole(output / "deep" / "joined.bin", "wb") as file:
        for name in sorted(members):
            file.write(members[name].read_bytes())


@pytest.fixture
def asset(index, monkeypatch):
    """A data set "letters" of two npm packages, registered beside "numbers" of one."""
    first = index.publish("npm", "first", {"package/a": b"alpha"})
    second = index.publish("npm", "second", {"package/b": b"beta"})
    letters = Asset("letters", (first, second), join, {"deep/joined.bin": hashlib.sha256(b"alphabeta").hexdigest()})
    third = index.publish("npm", "third", {"package/c": b"123"})
    numbers = Asset("numbers", (third,), join, {"deep/joined.bin": hashlib.sha256(b"123").hexdigest()})
    monkeypatch.setattr(data, "DATASETS", {"letters": letters, "numbers": numbers})
    return letters


def register(monkeypatch, asset):
    monkeypatch.setattr(data, "DATASETS", {asset.name: asset})


def failure(root, name="letters", **options):
    with pytest.raises(TokenariumError) as caught:
        data.fetch(name, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_fetched_data_set_holds_what_its_packages_hold(asset, tmp_path):
    assert data.fetch("letters", tmp_path) is True
    assert (tmp_path / "data" / "letters" / "deep" / "joined.bin").read_bytes() == b"alphabeta"
    assert os.listdir(tmp_path / "data") == ["letters"]
    data.verify("letters", tmp_path)


def test_a_second_run_does_no_work(asset, index, tmp_path):
    data.fetch("letters", tmp_path)
    before = os.stat(tmp_path / "data" / "letters").st_mtime_ns
    index.calls.clear()
    steps = []
    assert data.fetch("letters", tmp_path, progress=lambda *step: steps.append(step)) is False
    assert (index.calls, steps) == ([], [])
    assert os.stat(tmp_path / "data" / "letters").st_mtime_ns == before


def test_another_root_is_served_from_the_cache(asset, index, tmp_path):
    data.fetch("letters", tmp_path / "one")
    index.calls.clear()
    assert data.fetch("letters", tmp_path / "two") is True
    assert index.calls == []


def test_after_an_interruption_only_the_rest_is_downloaded(asset, index, tmp_path, monkeypatch):
    call = packages._call

    def interrupted(command, folder):
        if command[-1].startswith("second"):
            raise KeyboardInterrupt
        return call(command, folder)

    monkeypatch.setattr(packages, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("letters", tmp_path)
    assert os.listdir(tmp_path / "data") == []

    monkeypatch.setattr(packages, "_call", call)
    data.fetch("letters", tmp_path)
    assert index.calls == ["first@1.0", "second@1.0"]
    data.verify("letters", tmp_path)


def test_all_data_sets_are_fetched_and_those_made_are_named(asset, tmp_path):
    data.fetch("letters", tmp_path)
    assert data.fetch_all(tmp_path) == ["numbers"]
    assert data.fetch_all(tmp_path) == []


@pytest.mark.parametrize("damage", ["changed", "missing", "surplus"])
def test_a_damaged_data_set_is_found_and_mended(asset, damage, tmp_path):
    data.fetch("letters", tmp_path)
    folder = tmp_path / "data" / "letters"
    if damage == "changed":
        (folder / "deep" / "joined.bin").write_bytes(b"alphabetA")
    elif damage == "missing":
        (folder / "deep" / "joined.bin").unlink()
    else:
        (folder / "notes.txt").write_text("mine")
    with pytest.raises(TokenariumError, match="tokenarium data letters") as caught:
        data.verify("letters", tmp_path)
    assert "\n" not in str(caught.value)
    assert data.fetch("letters", tmp_path) is True
    data.verify("letters", tmp_path)


def test_a_data_set_that_was_never_fetched_is_named_with_the_mend(asset, tmp_path):
    with pytest.raises(TokenariumError, match=r"joined\.bin is missing.*tokenarium data letters"):
        data.verify("letters", tmp_path)


@pytest.fixture
def old(asset, tmp_path):
    """An older content of data/letters, which a failing fetch has to leave as it is."""
    path = tmp_path / "data" / "letters" / "old.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"old")
    yield path
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path / "data") == ["letters"]
    assert os.listdir(path.parent) == ["old.bin"]


def test_another_result_than_the_pinned_one_names_both_digests(asset, old, tmp_path, monkeypatch):
    register(monkeypatch, dataclasses.replace(asset, files={"deep/joined.bin": "0" * 64}))
    text = failure(tmp_path)
    assert "0" * 64 in text
    assert hashlib.sha256(b"alphabeta").hexdigest() in text


def test_a_digest_that_is_not_pinned_yet_is_found_for_the_author(asset, old, tmp_path, monkeypatch):
    register(monkeypatch, dataclasses.replace(asset, files={"deep/joined.bin": ""}))
    text = failure(tmp_path)
    assert "none pinned" in text
    assert hashlib.sha256(b"alphabeta").hexdigest() in text


def test_a_result_with_surplus_files_is_refused(asset, old, tmp_path, monkeypatch):
    def more(members, output):
        join(members, output)
        (output / "more.txt").write_text("more")

    register(monkeypatch, dataclasses.replace(asset, normalise=more))
    assert "more.txt does not belong there" in failure(tmp_path)


def test_a_package_with_other_bytes_is_refused(asset, old, index, tmp_path):
    index.publish("npm", "second", {"package/b": b"bad"})
    text = failure(tmp_path)
    assert "second 1.0" in text
    assert asset.packages[1].members["package/b"] in text


def test_a_package_that_is_gone_is_one_line(asset, old, index, tmp_path):
    index.archive("npm", "second").unlink()
    assert "second@1.0 is not in this registry" in failure(tmp_path)


def test_a_full_disk_is_one_line(asset, old, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tokenarium.files.os.fsync", full)
    assert "No space left on device" in failure(tmp_path)
    monkeypatch.undo()


def test_a_normaliser_that_breaks_leaves_no_trace(asset, old, tmp_path, monkeypatch):
    def broken(members, output):
        join(members, output)
        raise ZeroDivisionError

    register(monkeypatch, dataclasses.replace(asset, normalise=broken))
    with pytest.raises(ZeroDivisionError):
        data.fetch("letters", tmp_path)


def test_what_a_killed_run_left_is_cleared_away(asset, tmp_path):
    leftover = tmp_path / "data" / ".letters.killed"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"half")
    data.fetch("letters", tmp_path)
    assert os.listdir(tmp_path / "data") == ["letters"]


def test_progress_counts_each_package_and_the_writing(asset, tmp_path):
    steps = []
    data.fetch("letters", tmp_path, progress=lambda *step: steps.append(step))
    assert [(done, total) for done, total, what in steps] == [(0, 3), (1, 3), (2, 3)]
    assert "first 1.0" in steps[0][2]


def test_nothing_is_shown_without_a_terminal(asset, tmp_path, capfd):
    data.fetch("letters", tmp_path)
    assert capfd.readouterr() == ("", "")


def test_the_step_under_way_is_shown_on_a_terminal(monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("letters") as step:
        step(1, 3, "fetching npm package second 1.0")
    output, errors = capfd.readouterr()
    assert output == ""
    assert "letters: fetching npm package second 1.0" in errors
    assert "1/3" in errors


def test_an_unknown_name_gets_the_nearest_one(asset, tmp_path):
    assert "did you mean 'letters'?" in failure(tmp_path, "leters")
    assert "there are letters, numbers" in failure(tmp_path, "fish")
    assert not (tmp_path / "data").exists()


def test_the_source_is_a_setting_and_an_argument_overrules_it(monkeypatch):
    monkeypatch.delenv("TOKENARIUM_SOURCE", raising=False)
    assert fetching.chosen_source() == "packages"
    monkeypatch.setenv("TOKENARIUM_SOURCE", "hub")
    assert fetching.chosen_source() == "hub"
    assert fetching.chosen_source("packages") == "packages"


def test_another_source_is_refused(asset, tmp_path, monkeypatch):
    assert "'floppy'" in failure(tmp_path, source="floppy")
    monkeypatch.setenv("TOKENARIUM_SOURCE", "floppy")
    assert "TOKENARIUM_SOURCE" in failure(tmp_path)
    assert not (tmp_path / "data").exists()


def test_every_data_set_pins_all_it_reads_and_writes():
    for name, asset in data.DATASETS.items():
        assert asset.name == name
        digests = [
            *asset.files.values(),
            *(digest for each in asset.packages if isinstance(each, Package) for digest in each.members.values()),
            *(each.sha256 for each in asset.packages if isinstance(each, Archive)),
        ]
        assert digests
        assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)
