"""Saved tensors are opened without being read, and what is read is what was saved."""

import json
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tokenarium.errors import TokenariumError
from tokenarium.study import dataset as dataset_module
from tokenarium.study import show, tensors
from tokenarium.study.dataset import open_tensors
from tokenarium.study.parameters import project_root

VALUES = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)


def write(folder, arrays, index=None):
    """A folder of tensors as a study writes it; dims a, b, c without an index."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / "tensors.safetensors")
    plain = {"note": "what it is", "unit": "nats", "coords": {}}
    made = {name: plain | {"dims": list("abc")[: array.ndim]} for name, array in arrays.items()}
    (folder / "index.json").write_text(json.dumps(made if index is None else index))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tensors"), {"x": VALUES, "z": np.array(7)})


def positions(length):
    anywhere = st.integers(-length, length - 1)
    return st.one_of(anywhere, st.slices(length), st.lists(anywhere, max_size=4).map(lambda each: np.array(each, int)))


@settings(deadline=None)
@given(key=st.tuples(*(positions(length) for length in VALUES.shape)))
def test_any_outer_index_reads_what_numpy_finds(folder, key):
    expected = VALUES
    for axis in reversed(range(3)):
        expected = np.take(expected, np.arange(VALUES.shape[axis])[key[axis]], axis=axis)
    found = open_tensors(folder).x.isel(dict(zip("abc", key, strict=True)))
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.values, expected)


def test_points_are_read_where_they_are_asked_for(folder):
    rows, columns = xr.DataArray([0, 3, 3], dims="point"), xr.DataArray([4, 0, 2], dims="point")
    found = open_tensors(folder).x.isel(a=rows, b=columns)
    np.testing.assert_array_equal(found, VALUES[[0, 3, 3], [4, 0, 2]])


def test_the_usual_ways_to_look_at_a_dataset_work(tmp_path):
    index = {"x": {"dims": ["layer", "head", "token"], "note": "n", "unit": "nats", "coords": {"layer": [0, 3, 6, 9]}}}
    opened = open_tensors(write(tmp_path, {"x": VALUES}, index))
    np.testing.assert_array_equal(opened.x.sel(layer=6, head=1), VALUES[2, 1])
    np.testing.assert_array_equal((opened.x.mean("token") * 2 - 1).values, VALUES.mean(2) * 2 - 1)
    np.testing.assert_array_equal(opened.x.sel(layer=[9, 0]).values, VALUES[[3, 0]])
    assert "layer" in opened._repr_html_()
    assert opened.x.attrs == {"long_name": "n", "units": "nats"}
    assert opened.x.sel(layer=3).plot().axes.get_xlabel() == "token"


def test_single_numbers_and_copies_are_read_too(folder):
    opened = open_tensors(folder)
    assert (opened.z.item(), opened.z.dtype) == (7, np.int64)
    np.testing.assert_array_equal(opened.copy(deep=True).x, VALUES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened)).x, VALUES)  # noqa: S301 (written here)


def test_a_slice_of_a_file_larger_than_memory_reads_only_itself(tmp_path):
    shape = [64, 1024, 1024, 1024]  # 256 GiB: all but the header is a hole
    bytes_ = 4 * int(np.prod(shape, dtype=np.int64))
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, bytes_]}}).encode()
    with open(tmp_path / "tensors.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        place = 8 + len(header) + 4 * ((63 * 1024 + 5) * 1024 + 7) * 1024
        try:
            file.truncate(8 + len(header) + bytes_)
        except OSError:
            pytest.skip("this file system makes no files of 256 GiB with holes")
        file.seek(place)
        file.write(np.arange(1024, dtype="<f4").tobytes())
    entry = {"dims": ["a", "b", "c", "d"], "note": "", "unit": "", "coords": {}}
    (tmp_path / "index.json").write_text(json.dumps({"x": entry}))
    tracemalloc.start()
    opened = open_tensors(tmp_path)
    row = opened.x.isel(a=-1, b=5)[7]
    np.testing.assert_array_equal(row.values, np.arange(1024))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_an_open_dataset_stays_what_it_was_when_the_study_is_run_again(project, finish):
    (finish() / "tensors").rename(project / "elsewhere")
    folder = write(project / "reports/tiny/tensors", {"x": VALUES})
    opened = tensors("tiny", project)
    folder.rename(folder.with_name("old"))
    write(folder, {"x": VALUES + 1})
    np.testing.assert_array_equal(opened.x, VALUES)
    np.testing.assert_array_equal(tensors("tiny", project).x, VALUES + 1)


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (lambda folder: (folder / "index.json").unlink(), r"index\.json is missing: run `dvc repro paper@tiny`"),
        (lambda folder: (folder / "tensors.safetensors").unlink(), r"tensors\.safetensors is missing: run `dvc repro"),
        (lambda folder: (folder / "index.json").write_text("{"), r"index\.json is damaged"),
        (lambda folder: (folder / "index.json").write_bytes(b"\xff"), r"index\.json is damaged"),
        (lambda folder: (folder / "index.json").write_text("[]"), "it holds no mapping"),
        (lambda folder: (folder / "index.json").write_text('{"x": {"dims": []}}'), "'x' lacks note, unit, coords"),
        (lambda folder: (folder / "index.json").write_text('{"x": 1}'), "'x' lacks dims, note, unit, coords"),
        (lambda folder: rename(folder, "x", "w"), "no tensor 'w'"),
        (lambda folder: change(folder, dims=["a", "b"]), r"'x' has shape \(4, 5, 6\)"),
        (lambda folder: change(folder, coords={"a": [1]}), "the labels of 'a' do not fit 'x'"),
        (lambda folder: change(folder, coords={"q": [1]}), "'x' lacks a labelled dimension"),
        (lambda folder: truncate(folder / "tensors.safetensors"), r"tensors\.safetensors is damaged"),
        (lambda folder: (folder / "tensors.safetensors").write_bytes(b""), r"tensors\.safetensors is damaged"),
        (lambda folder: bfloat16(folder), "'x' is BF16, which NumPy does not know"),
    ],
)
def test_damaged_files_are_one_clear_line_with_the_mend(project, break_, said):
    folder = write(project / "reports/tiny/tensors", {"x": VALUES})
    break_(folder)
    with pytest.raises(TokenariumError, match=said) as error:
        tensors("tiny", project)
    assert "run `dvc repro paper@tiny`, or `dvc pull`" in str(error.value)
    assert "\n" not in str(error.value)


def change(folder, **fields):
    index = json.loads((folder / "index.json").read_text())
    index["x"] |= fields
    (folder / "index.json").write_text(json.dumps(index))


def rename(folder, old, new):
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace(f'"{old}"', f'"{new}"'))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-4])


def bfloat16(folder):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(4, 5, 6, dtype=torch.bfloat16)}, folder / "tensors.safetensors")


# Other runs


def test_another_profile_is_read_from_its_copy(project):
    write(project / "reports/tiny/tensors", {"x": VALUES})
    write(project / ".tokenarium/smoke/reports/tiny/tensors", {"x": VALUES[:2]})
    assert tensors("tiny", project, profile="smoke").x.shape == (2, 5, 6)
    assert tensors("tiny", project, profile="cpu").x.shape == (4, 5, 6)
    with pytest.raises(TokenariumError, match="no tensors of tiny: run `tokenarium repro tiny --profile gpu`"):
        tensors("tiny", project, profile="gpu")
    with pytest.raises(TokenariumError, match="unknown profile 'smok'; did you mean smoke"):
        tensors("tiny", project, profile="smok")
    with pytest.raises(TokenariumError, match="either revision or profile"):
        tensors("tiny", project, profile="smoke", revision="HEAD")


def test_a_revision_is_read_from_dvcs_cache_and_kept(project):
    from dvc.repo import Repo

    def commit(values):
        write(project / "reports/tiny/tensors", {"x": values})
        Repo(str(project)).add(str(project / "reports/tiny/tensors"))
        git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(project))
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-qm", "tensors"], check=True)

    subprocess.run(["git", "init", "-q", str(project)], check=True)
    Repo.init(str(project))
    commit(VALUES)
    commit(VALUES + 1)
    np.testing.assert_array_equal(tensors("tiny", project).x, VALUES + 1)
    np.testing.assert_array_equal(tensors("tiny", project, revision="HEAD~1").x, VALUES)
    for path in (project / ".dvc/cache/files").rglob("*"):
        if path.is_file():
            path.unlink()
    np.testing.assert_array_equal(tensors("tiny", project, revision="HEAD~1").x, VALUES)  # kept
    with pytest.raises(TokenariumError, match="no tensors of tiny at HEAD"):
        tensors("tiny", project, revision="HEAD")
    assert not list((project / ".tokenarium/revisions").rglob("*.partial"))
    for name in ("HEAD~9", "--help"):
        with pytest.raises(TokenariumError, match=f"git knows no revision '{name}'"):
            tensors("tiny", project, revision=name)


def test_committed_tensors_stay_readable():
    root = project_root(Path(__file__).parent)
    if not (root / "reports/pitome/tensors").is_dir():
        pytest.skip("reports/pitome/tensors is not here: `dvc pull` or `dvc repro paper@pitome` brings it")
    opened = tensors("pitome", root)
    assert opened.energy.dims == ("image", "token")
    assert opened.pitome_source.dims == ("image", "pitome_source.kept", "patch")
    np.testing.assert_allclose(opened.pitome_source.sum("pitome_source.kept"), 1, rtol=1e-6)


# Showing


def test_arrays_are_drawn_with_their_names():
    pytest.importorskip("treescope")
    array = xr.DataArray(VALUES, dims=["layer", "head", "token"])
    for drawn in (show(array), show(VALUES), show(torch.tensor(VALUES)), show(array, rows=["token"], sliders=[0])):
        assert "<" in drawn._repr_html_()
    with pytest.raises(TokenariumError, match="no dimension 'tokn'; did you mean token"):
        show(array, rows=["tokn"])
    with pytest.raises(TokenariumError, match=r"draws arrays, not Dataset: take one of its variables"):
        show(array.to_dataset(name="x"))


def test_treescope_is_asked_for_only_when_something_is_drawn(monkeypatch):
    monkeypatch.setitem(sys.modules, "treescope", None)
    assert dataset_module.open_tensors
    with pytest.raises(TokenariumError, match="pip install treescope"):
        show(VALUES)
