"""Files appear whole or not at all, directories are swapped whole, and what goes wrong is one line."""

import errno
import hashlib
import json
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenarium import files
from tokenarium.errors import TokenariumError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def refuse(number: int):
    """A stand-in for a system call that fails with this error number."""

    def call(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return call


def test_text_is_utf8_with_plain_newlines_in_folders_that_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "text.txt"
    with files.write_whole(path) as file:
        file.write("höher\nweiter\n")
    assert path.read_bytes() == "höher\nweiter\n".encode()


def test_nothing_stands_under_the_name_before_the_block_ends(tmp_path):
    path = tmp_path / "data.bin"
    with files.write_whole(path, "wb") as file:
        file.write(b"x" * 100_000)
        assert not path.exists()
    assert path.stat().st_size == 100_000


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "data.bin"
    path.write_bytes(b"old")

    def half() -> None:
        with files.write_whole(path, "wb") as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)):
        half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, call, number):
    path = tmp_path / "data.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, call, refuse(number))
    with pytest.raises(TokenariumError) as caught, files.write_whole(path, "wb") as file:
        file.write(b"new")
    assert str(path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["data.bin"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "folder").write_text("a file")
    path = tmp_path / "folder" / "data.bin"
    with pytest.raises(TokenariumError, match=f"cannot write {path}"), files.write_whole(path):
        pass


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "data.bin").mkdir()
    with pytest.raises(TokenariumError, match="Is a directory"), files.write_whole(tmp_path / "data.bin"):
        pass
    assert os.listdir(tmp_path) == ["data.bin"]


def test_an_error_that_has_nothing_to_do_with_writing_keeps_its_kind(tmp_path):
    with pytest.raises(FileNotFoundError), files.write_whole(tmp_path / "data.bin"):
        (tmp_path / "not there").read_text()
    with pytest.raises(PermissionError), files.write_whole(tmp_path / "data.bin"):
        raise PermissionError(errno.EACCES, "of something that the block reads")


def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path):
    (tmp_path / "cache").write_text("shared")
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    with files.write_whole(tmp_path / "link") as file:
        file.write("own")
    assert (tmp_path / "cache").read_text() == "shared"
    assert (tmp_path / "link").read_text() == "own"


def test_another_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mode"), files.write_whole(tmp_path / "x", "a"):
        pass


@given(value=JSON)
def test_json_reads_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    files.write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_json_does_not_depend_on_the_order_of_keys(tmp_path):
    files.write_json(tmp_path / "one", {"b": 1, "a": {"d": 2, "c": 3}})
    files.write_json(tmp_path / "two", {"a": {"c": 3, "d": 2}, "b": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_what_json_cannot_hold_is_refused_and_the_old_file_kept(tmp_path, value):
    path = tmp_path / "value.json"
    path.write_text("1")
    with pytest.raises((ValueError, TypeError)):
        files.write_json(path, value)
    assert path.read_text() == "1"


def test_sha256_is_the_published_one_of_abc(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_a_file_longer_than_a_buffer(tmp_path):
    data = os.urandom(3_000_001)
    (tmp_path / "long").write_bytes(data)
    assert files.sha256(tmp_path / "long") == hashlib.sha256(data).hexdigest()


@pytest.fixture
def staged(tmp_path):
    folder = tmp_path / "staged"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "new.txt").write_text("new")
    return folder


def test_a_directory_takes_a_new_place(tmp_path, staged):
    files.replace_directory(staged, tmp_path / "parent" / "target")
    assert (tmp_path / "parent" / "target" / "inner" / "new.txt").read_text() == "new"
    assert not staged.exists()


def test_a_directory_replaces_another_without_mixing(tmp_path, staged):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old.txt").write_text("old")
    files.replace_directory(staged, tmp_path / "target")
    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(tmp_path / "target") == ["inner"]


def test_a_link_to_a_directory_is_replaced_and_what_it_points_to_is_kept(tmp_path, staged):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "old.txt").write_text("old")
    (tmp_path / "target").symlink_to(tmp_path / "cache")
    files.replace_directory(staged, tmp_path / "target")
    assert (tmp_path / "cache" / "old.txt").read_text() == "old"
    assert os.listdir(tmp_path / "target") == ["inner"]
    assert sorted(os.listdir(tmp_path)) == ["cache", "target"]


def test_the_old_directory_is_back_if_the_new_one_cannot_take_its_place(tmp_path, staged, monkeypatch):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old.txt").write_text("old")
    rename = os.rename

    def second_fails(source, target):
        if source == staged:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", second_fails)
    with pytest.raises(TokenariumError, match="No space left on device"):
        files.replace_directory(staged, tmp_path / "target")
    assert os.listdir(tmp_path / "target") == ["old.txt"]
    assert sorted(os.listdir(tmp_path)) == ["staged", "target"]


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        with files.locked(tmp_path / "locks" / "one"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), files.locked(tmp_path / "one"):
        raise RuntimeError
    with files.locked(tmp_path / "one"):
        pass
