"""Tensors of a finished study as an xarray Dataset whose values stay in the file until somebody looks.

A study's folder `tensors` holds tensors.safetensors and index.json, which has for every tensor its `dims`, `note` (a
sentence), `unit` and `coords` (labels along some of the dimensions).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from safetensors import SafetensorError, safe_open
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from tokenarium.errors import TokenariumError
from tokenarium.files import replace_directory
from tokenarium.study.parameters import PROFILES, find_study, load_params, nearest, project_root

if TYPE_CHECKING:
    import torch

TENSORS_FILE = "tensors.safetensors"
INDEX_FILE = "index.json"
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}


def tensors(slug: str, root: Path | None = None, profile: str | None = None, revision: str | None = None) -> xr.Dataset:
    """Tensors of a finished study as an xarray Dataset with named dimensions; values are read when they are used.

    A dimension that has another length, or other labels, in another tensor carries the tensor's name: `token` becomes
    `energy.token`. Looks in reports/<slug>, then in the scratch of a notebook run by hand. profile: another one than
    that of params.yaml, from its copy of the tree, .tokenarium/<profile>. revision: the tensors of a commit, from
    DVC's cache or remote. The Dataset goes on reading what it opened when the study is run again.
    Raises TokenariumError when there are none, or when their files are damaged.
    """
    root = project_root(root)
    params = load_params(root)
    section, name = find_study(params, slug)
    stage = f"{section.removesuffix('s')}@{name}"
    if revision is not None:
        if profile is not None:
            raise TokenariumError("tensors of a revision have its own profile: give either revision or profile")
        return open_tensors(_of_revision(root, slug, revision))
    if profile is not None and profile not in PROFILES:
        raise TokenariumError(f"unknown profile '{profile}'; {nearest(profile, PROFILES)}")
    if profile is not None and profile != params["profile"]:
        places = [root / ".tokenarium" / profile / "reports" / slug / "tensors"]
        mend = f"run `tokenarium repro {name} --profile {profile}`"
    else:
        places = [root / "reports" / slug / "tensors", root / ".tokenarium" / "by-hand" / slug / "tensors"]
        mend = f"run `dvc repro {stage}`, or `dvc pull` where a remote holds them"
    for folder in places:
        if folder.is_dir():
            return open_tensors(folder, mend)
    raise TokenariumError(f"no tensors of {slug}: {mend}")


def open_tensors(folder: Path | str, mend: str = "make them again") -> xr.Dataset:
    """Open a folder with tensors.safetensors and index.json lazily.

    mend: what the error message for a missing or damaged file advises. Raises TokenariumError.
    """
    return xr.open_dataset(Path(folder), engine=SafetensorsBackend, mend=mend)


class SafetensorsBackend(BackendEntrypoint):
    """xarray's way to open a folder of tensors: `xarray.open_dataset(folder, engine=SafetensorsBackend)`."""

    description = "A folder with tensors.safetensors and index.json"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "mend")

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mend: str = "make them again",
    ) -> xr.Dataset:
        folder = Path(filename_or_obj)
        index = _read_index(folder / INDEX_FILE, mend)
        file = _File(folder / TENSORS_FILE, mend)
        left_out = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        arrays = {}
        for name, entry in index.items():
            if name in left_out:
                continue
            arrays[name] = _SafetensorsArray(file, name)
            if len(entry["dims"]) != len(arrays[name].shape):
                raise _damaged(folder / INDEX_FILE, f"'{name}' has shape {arrays[name].shape}", mend)
        try:
            return build_dataset({name: index[name] for name in arrays}, arrays)
        except ValueError as error:
            raise _damaged(folder / INDEX_FILE, str(error).splitlines()[0], mend) from None


def build_dataset(index: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, Any]) -> xr.Dataset:
    """A Dataset of arrays with the names, dimensions, labels, units and notes of `index`.

    arrays: name -> NumPy array or BackendArray. Dimensions that do not fit together carry the tensor's name.
    """
    lengths: dict[str, set[int]] = {}
    labels: dict[str, set[str]] = {}
    for name, entry in index.items():
        for dim, length in zip(entry["dims"], arrays[name].shape, strict=True):
            lengths.setdefault(dim, set()).add(length)
        for dim, each in entry["coords"].items():
            labels.setdefault(dim, set()).add(json.dumps(each))
    shared = {dim for dim in lengths if len(lengths[dim]) == 1 and len(labels.get(dim, ())) <= 1}
    variables, coords = {}, {}
    for name, entry in index.items():
        own = {dim: dim if dim in shared else f"{name}.{dim}" for dim in entry["dims"]}
        for dim, each in entry["coords"].items():
            if len(each) != arrays[name].shape[entry["dims"].index(dim)]:
                raise ValueError(f"the labels of '{dim}' do not fit '{name}'")
            coords[own[dim]] = each
        values = arrays[name]
        if isinstance(values, BackendArray):
            values = indexing.LazilyIndexedArray(values)
        attributes = {"long_name": entry["note"], "units": entry["unit"]}
        variables[name] = xr.Variable(tuple(own.values()), values, attributes)
    return xr.Dataset(variables, coords)


def show(array: xr.DataArray | np.ndarray | torch.Tensor, **options: Any) -> Any:
    """An array as a picture in the notebook, drawn by treescope, every axis under its name.

    options: those of treescope.render_array (rows, columns, sliders, vmin, vmax ...). Long axes are cut in the
    middle. Raises TokenariumError for what is no array, and where treescope is not installed.
    """
    try:
        import treescope
    except ImportError:
        raise TokenariumError("tokenarium.show draws with treescope: pip install treescope") from None

    names: dict[int, str] = {}
    if isinstance(array, xr.DataArray):
        names = {axis: str(dim) for axis, dim in enumerate(array.dims)}
        for group in ("rows", "columns", "sliders"):
            if group in options:
                options[group] = [_axis(array, dim) for dim in options[group]]
        values = array.values
    else:
        values = as_numpy(array) if hasattr(array, "detach") else array
    if not isinstance(values, np.ndarray):
        raise TokenariumError(f"tokenarium.show draws arrays, not {type(array).__name__}: take one of its variables")
    labels = {axis: f"{name}: {values.shape[axis]}" for axis, name in names.items()}
    return treescope.render_array(values, **{"truncate": True, "axis_labels": labels} | options)


def as_numpy(values: torch.Tensor | np.ndarray) -> np.ndarray:
    """A contiguous copy, so that what is done to `values` later does not change it; bfloat16 becomes float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # NumPy knows no bfloat16
    return np.array(values, order="C")


def _axis(array: xr.DataArray, dim: str | int) -> int:
    if isinstance(dim, int):
        return dim
    if dim not in array.dims:
        raise TokenariumError(f"no dimension '{dim}'; {nearest(dim, [str(each) for each in array.dims])}")
    return array.dims.index(dim)


class _File:
    """An open safetensors file: it stays what it was when another one takes its place."""

    def __init__(self, path: Path, mend: str):
        self.path, self.mend = path, mend
        if not path.is_file():
            raise TokenariumError(f"{path} is missing: {mend}")
        try:
            self.handle = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error), mend) from None
        self.names = set(self.handle.keys())

    def __deepcopy__(self, memo: dict[int, Any]) -> _File:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _File, (self.path, self.mend)


class _SafetensorsArray(BackendArray):
    """One tensor of a file, of which `array[key]` reads the smallest box that holds what was asked for."""

    def __init__(self, file: _File, name: str):
        if name not in file.names:
            raise _damaged(file.path, f"it has no tensor '{name}' although {INDEX_FILE} names one", file.mend)
        piece = file.handle.get_slice(name)
        if piece.get_dtype() not in _DTYPES:
            raise _damaged(file.path, f"'{name}' is {piece.get_dtype()}, which NumPy does not know", file.mend)
        self.file, self.name = file, name
        self.shape = tuple(piece.get_shape())
        self.dtype = np.dtype(_DTYPES[piece.get_dtype()])

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        if isinstance(key, indexing.VectorizedIndexer):
            return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._outer)
        return self._outer(key.tuple)  # xarray's adapter fails on empty slices that go backwards

    def _outer(self, key: tuple[int | slice | np.ndarray, ...]) -> np.ndarray:
        """The part of the tensor that an orthogonal index names: one int, slice or 1-D array of ints per axis."""
        wanted = [np.arange(length)[part] for part, length in zip(key, self.shape, strict=True)]
        if not wanted:
            return self.file.handle.get_tensor(self.name)
        if not all(positions.size for positions in wanted):
            return np.empty([len(positions) for positions in wanted if positions.ndim], self.dtype)
        box = tuple(slice(int(positions.min()), int(positions.max()) + 1) for positions in wanted)
        values = self.file.handle.get_slice(self.name)[box]
        for axis in reversed(range(len(box))):  # from the last, so that an axis which goes does not move the others
            values = values.take(wanted[axis] - box[axis].start, axis=axis)
        return values


def _read_index(path: Path, mend: str) -> dict[str, Any]:
    """index.json, checked. Raises TokenariumError, naming what is wrong with it."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenariumError(f"{path} is missing: {mend}") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error), mend) from None
    if not isinstance(index, dict):
        raise _damaged(path, "it holds no mapping of names", mend)
    for name, entry in index.items():
        fields = entry if isinstance(entry, dict) else {}
        kinds = {"dims": list, "note": str, "unit": str, "coords": dict}
        wrong = [field for field, kind in kinds.items() if not isinstance(fields.get(field), kind)]
        if wrong or not set(fields["coords"]) <= set(fields["dims"]):
            raise _damaged(path, f"the entry of '{name}' lacks {', '.join(wrong) or 'a labelled dimension'}", mend)
    return index


def _damaged(path: Path, reason: str, mend: str) -> TokenariumError:
    return TokenariumError(f"{path} is damaged ({reason}): remove it and {mend}")


def _of_revision(root: Path, slug: str, revision: str) -> Path:
    """The folder with a commit's tensors, fetched from DVC's cache or remote once and kept below .tokenarium."""
    git = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    if found.returncode:
        raise TokenariumError(f"git knows no revision '{revision}' here: name a commit, a tag or a branch")
    commit = found.stdout.strip()
    kept = root / ".tokenarium" / "revisions" / commit / slug / "tensors"
    if (kept / INDEX_FILE).is_file():
        return kept
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError

    staged = kept.with_name(".tensors.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        files = DVCFileSystem(str(root), rev=commit)
        for name in (INDEX_FILE, TENSORS_FILE):
            files.get_file(f"reports/{slug}/tensors/{name}", str(staged / name))
    except (OSError, DvcException, DataIndexDirError) as error:
        shutil.rmtree(staged)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TokenariumError(
            f"no tensors of {slug} at {revision} ({reason}): a remote may have them: `dvc fetch --all-commits`"
        ) from None
    replace_directory(staged, kept)
    return kept
