"""What the explorer knows of its tensors, which part of them a state needs, and how a page carries them."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tokenarium.data import fashion_mnist
from tokenarium.errors import TokenariumError
from tokenarium.study.parameters import nearest, project_root

ROLES = ("rows", "columns", "tokens", "facets", "slider", "difference", "mean", "sum", "largest")
ALONE = ("rows", "columns", "tokens", "facets", "difference", "largest")  # roles that one dimension can have
LARGEST_SLICE = 4_000_000  # values that are sent to the browser at once
PICTURE_BYTES = 256 * 1024
PAGE_BYTES = 4 * 2**20  # of tensors in a page, before compression
_TOKENS = ("token", "tokens", "patch", "patches", "other", "key", "query", "position")
_PICTURES = ("picture", "pictures", "image", "images")
_INTEGERS = {"u1": "uint8", "i1": "int8", "u2": "uint16", "i2": "int16", "i4": "int32"}


def plain_dims(name: str, array: xr.DataArray) -> list[str]:
    """A study's own names of an array's dimensions: `token` for `energy.token`."""
    return [str(dim).removeprefix(f"{name}.") for dim in array.dims]


def grid(length: int) -> tuple[int, int] | None:
    """(side, skipped) of the square that `length` tokens fill, a class token skipped; None where they do not."""
    for skip in (0, 1):
        side = math.isqrt(max(0, length - skip))
        if side >= 4 and side * side == length - skip:
            return side, skip
    return None


def first_roles(
    dims: Sequence[str], shape: Sequence[int], words: Sequence[str], pictured: str | None
) -> dict[str, str]:
    """How a tensor is shown first: tokens on what they came from if that is known, otherwise as a heat map.

    words: dimensions labelled by text. pictured: the dimension of the pictures, or None.
    """
    roles = dict.fromkeys(dims, "slider")
    if not dims:
        return roles
    last = dims[-1]
    over_picture = pictured in dims[:-1] and last in _TOKENS and grid(shape[-1]) is not None
    if last in words or over_picture:
        return roles | {last: "tokens"}
    return roles | {last: "columns"} | ({dims[-2]: "rows"} if len(dims) > 1 else {})


def describe(runs: Mapping[str, xr.Dataset], pictures: np.ndarray | None = None) -> dict[str, Any]:
    """What the front end is told: for every run its tensors and pictures, and the colours. Reads no tensor.

    pictures: (images, height, width) uint8, what the dimension `image` numbers; without them those that a run has
    itself, or those of the data set that its study names.
    """
    found: dict[str, Any] = {}
    for run, dataset in runs.items():
        shown = _pictures(dataset) if pictures is None else pictures
        tensors = {}
        for name, array in dataset.data_vars.items():
            if array.dtype.kind not in "biuf":
                continue
            dims = plain_dims(name, array)
            # JSON has no NaN, and a label is only read
            coords = {
                plain: [each if isinstance(each, str | int) else str(each) for each in array[dim].values.tolist()]
                for plain, dim in zip(dims, array.dims, strict=True)
                if dim in array.coords
            }
            words = [dim for dim, labels in coords.items() if labels and isinstance(labels[0], str)]
            tensors[name] = {
                "dims": dims,
                "shape": list(array.shape),
                "note": str(array.attrs.get("long_name", "")),
                "unit": str(array.attrs.get("units", "")),
                "coords": coords,
                "roles": first_roles(dims, array.shape, words, None if shown is None else "image"),
                "left_out": "",
            }
        if not tensors:
            raise TokenariumError(f"{run} has no tensors to explore")
        found[run] = {"tensors": tensors}
        if shown is not None:
            shown = shown[: max(1, PICTURE_BYTES // max(1, shown[0].size))]
            found[run]["pictures"] = {
                "dim": "image",
                "shape": list(shown.shape),
                "data": base64.b64encode(np.ascontiguousarray(shown, np.uint8).tobytes()).decode(),
            }
    return {"runs": found, "colours": _colours()}


def first_state(catalog: Mapping[str, Any], run: str | None = None, tensor: str | None = None) -> dict[str, Any]:
    """The state that shows `tensor` as `first_roles` says; without it the first one that has a map of tokens, or any.

    Raises TokenariumError for a run or a tensor that is not there.
    """
    run = next(iter(catalog["runs"])) if run is None else run
    if run not in catalog["runs"]:
        raise TokenariumError(f"no run '{run}'; {nearest(run, catalog['runs'])}")
    tensors = catalog["runs"][run]["tensors"]
    if tensor is None:
        tensor = next(
            (name for name, spec in tensors.items() if "tokens" in spec["roles"].values()), next(iter(tensors))
        )
    if tensor not in tensors:
        raise TokenariumError(f"no tensor '{tensor}'; {nearest(tensor, tensors)}")
    spec = tensors[tensor]
    return {
        "run": run,
        "tensor": tensor,
        "roles": dict(spec["roles"]),
        "index": dict.fromkeys(spec["dims"], 0),
        "other": {dim: min(1, length - 1) for dim, length in zip(spec["dims"], spec["shape"], strict=True)},
        "minus": "",
        "opacity": 60,
        "range": None,
    }


def check_state(catalog: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """A whole state: what `state` does not say is as in `first_state`.

    Raises TokenariumError for an unknown run, tensor, dimension or role, a role that two dimensions have although one
    can, and a position outside of its dimension.
    """
    whole = first_state(catalog, state.get("run"), state.get("tensor"))
    if unknown := set(state) - set(whole):
        raise TokenariumError(f"a state has no '{min(unknown)}'; {nearest(min(unknown), whole)}")
    spec = catalog["runs"][whole["run"]]["tensors"][whole["tensor"]]
    length = dict(zip(spec["dims"], spec["shape"], strict=True))
    for part in ("roles", "index", "other"):
        for dim in state.get(part, {}):
            if dim not in length:
                raise TokenariumError(f"{whole['tensor']} has no dimension '{dim}'; {nearest(dim, spec['dims'])}")
        whole[part] |= state.get(part, {})
    for dim, role in whole["roles"].items():
        if role not in ROLES:
            raise TokenariumError(f"'{role}' is no role of '{dim}'; {nearest(str(role), ROLES)}")
    for role in ALONE:
        if sum(each == role for each in whole["roles"].values()) > 1:
            raise TokenariumError(f"only one dimension can be '{role}': give the other one 'slider'")
    for part in ("index", "other"):
        for dim, position in whole[part].items():
            if not 0 <= position < max(1, length[dim]):
                raise TokenariumError(f"'{dim}' goes from 0 to {length[dim] - 1}, not to {position}")
    if minus := state.get("minus"):
        run, tensor = minus if isinstance(minus, list | tuple) else json.loads(minus)
        first_state(catalog, run, tensor)
        whole["minus"] = json.dumps([run, tensor], separators=(",", ":"), ensure_ascii=False)
    return whole | {key: state[key] for key in ("opacity", "range") if key in state}


def part(runs: Mapping[str, xr.Dataset], run: str, tensor: str, index: Mapping[str, int]) -> xr.DataArray:
    """The part of a tensor at the positions `index` of some of its dimensions, named as the study named them.

    Raises TokenariumError for an unknown name, and for a part too large to be looked at.
    """
    if run not in runs or tensor not in runs[run]:
        raise TokenariumError(f"no tensor '{tensor}' in '{run}'")
    array = runs[run][tensor]
    names = dict(zip(plain_dims(tensor, array), array.dims, strict=True))
    for dim, position in index.items():
        if dim not in names or not 0 <= position < array.sizes[names[dim]]:
            raise TokenariumError(f"{tensor} has no place {position} along '{dim}'")
    found = array.isel({names[dim]: position for dim, position in index.items()})
    if found.size > LARGEST_SLICE:
        raise TokenariumError(
            f"{found.size:,} values of {tensor} are more than {LARGEST_SLICE:,}: give another dimension a slider"
        )
    return found.rename({own: dim for dim, own in names.items() if own in found.dims and own != dim})


def packed(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Values as the smallest type that a browser reads, without loss; (array, its name).

    Integers and float32 that hold integers take the smallest integer type they fit, other floats stay float32 or
    float64. Integers beyond 32 bits become float64, exact below 2**53.
    """
    if values.dtype.kind == "b":
        return values.astype(np.uint8), "u1"
    if values.dtype.kind in "iu" or (values.size and np.isfinite(values).all() and (values == np.round(values)).all()):
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        negative_zero = values.dtype.kind == "f" and bool((np.signbit(values) & (values == 0)).any())
        for name, dtype in _INTEGERS.items():
            if not negative_zero and np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return values.astype(dtype), name
    if values.dtype in (np.float16, np.float32):
        return values.astype(np.float32), "f4"
    return values.astype(np.float64), "f8"


def embed(runs: Mapping[str, xr.Dataset], catalog: dict[str, Any], page_bytes: int = PAGE_BYTES) -> dict[str, Any]:
    """`catalog` with the tensors themselves, compressed, at most `page_bytes` of them before compression.

    What is not a whole number is rounded to float16 where that keeps three digits. A tensor over its share is cut to
    the first entries of its first dimensions; both are said in its `left_out`.
    """
    sizes = {(run, name): 2 * array.size for run, dataset in runs.items() for name, array in dataset.data_vars.items()}
    wanted = [key for key in sorted(sizes, key=sizes.__getitem__) if key[1] in catalog["runs"][key[0]]["tensors"]]
    left, whole = page_bytes, dict(catalog, runs={run: dict(entry) for run, entry in catalog["runs"].items()})
    for run in whole["runs"]:
        whole["runs"][run]["tensors"] = dict(whole["runs"][run]["tensors"])
    for number, (run, name) in enumerate(wanted):
        spec = dict(whole["runs"][run]["tensors"][name])
        array, said = runs[run][name], []
        share = max(1, left // (len(wanted) - number))
        values, dtype = _halved(*packed(array[_cut(array.shape, share)].values))
        values = values[_cut(values.shape, share // values.itemsize)]
        for dim, length, had in zip(spec["dims"], values.shape, array.shape, strict=True):
            if length < had:
                said.append(f"all but the first {length} of {had} along {dim}")
        if dtype == "f2":
            said.append("digits beyond float16, about the fourth")
        left -= values.nbytes
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        spec |= {
            "shape": list(values.shape),
            "coords": {dim: each[: values.shape[spec["dims"].index(dim)]] for dim, each in spec["coords"].items()},
            "left_out": "; ".join(said),
            "dtype": dtype,
            "data": base64.b64encode(zlib.compress(little.tobytes(), 9)).decode(),
        }
        whole["runs"][run]["tensors"][name] = spec
    return whole


def _cut(shape: Sequence[int], count: int) -> tuple[slice, ...]:
    """The first entries of the first dimensions, so that at most `count` values (but at least one) remain."""
    kept = list(shape)
    for axis, length in enumerate(kept):
        rest = math.prod(kept[axis + 1 :])
        if length * rest <= count or not rest:
            break
        kept[axis] = max(1, count // rest)
    return tuple(slice(length) for length in kept)


def _halved(values: np.ndarray, dtype: str) -> tuple[np.ndarray, str]:
    """Floats as float16 where none overflows and the large ones keep three digits; anything else as it is."""
    if dtype not in ("f4", "f8"):
        return values, dtype
    finite = np.abs(values[np.isfinite(values)])
    fits = not finite.size or 1e-2 < finite.max() < 65504
    return (values.astype(np.float16), "f2") if fits else (values, dtype)


def _pictures(dataset: xr.Dataset) -> np.ndarray | None:
    """Pictures (images, height, width) uint8 that `image` numbers: a tensor of such a name, or the study's images."""
    for name in _PICTURES:
        if name in dataset and dataset[name].ndim == 3:
            values = dataset[name].values.astype(np.float64)
            low, high = np.nanmin(values), np.nanmax(values)
            return np.uint8(255 * (values - low) / (high - low or 1))
    source = dataset.encoding.get("source")
    count = dataset.sizes.get("image", 0)
    if not source or not count:
        return None
    try:
        evidence = json.loads((Path(source).parent / "evidence.json").read_text(encoding="utf-8"))
        if evidence["parameters"]["data"] != "fashion-mnist":
            return None
        return fashion_mnist.load(project_root(Path(source)), "test")[0][:count].numpy()
    except (OSError, ValueError, KeyError, TypeError, TokenariumError):
        return None  # the map is drawn without the picture


def _colours() -> dict[str, list[str]]:
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    def sampled(name: str, count: int) -> list[str]:
        return [to_hex(mpl.colormaps[name](place / (count - 1))) for place in range(count)]

    hues = sampled("hsv", 25)[:-1]
    return {
        "sequential": sampled("viridis", 33),
        "diverging": sampled("RdBu_r", 33),
        "categories": [hues[7 * place % 24] for place in range(24)],  # neighbours differ
    }
