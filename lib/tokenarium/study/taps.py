"""Record what happens inside a model or a method while it runs, without changing what comes out.

    taps = tokenarium.TensorTaps(model, examples=8)
    taps.outputs("vit.layers.*", ["image", "token", "channel"])
    taps.attention("vit.layers.*.attention", ["image", "head", "query", "key"])
    taps.calls("tokenarium.methods.vision.pitome.energy", ["image", "token"])
    with taps:
        model(pixel_values=pixels)
    taps.dataset()

Hooks and wrappers exist during the block only; before and after it the model runs exactly the code that it always runs.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokenarium.errors import TokenariumError
from tokenarium.study.dataset import as_numpy, build_dataset
from tokenarium.study.parameters import nearest

if TYPE_CHECKING:
    import xarray as xr

    from tokenarium.study.study import Study

Pick = int | str | None
_active: ContextVar[tuple[TensorTaps, ...]] = ContextVar("active taps", default=())


def record(name: str, tensor: Tensor, dims: Sequence[str]) -> None:
    """Hand `tensor` to the taps around this call; does nothing where there are none. See `TensorTaps.record`."""
    for taps in _active.get():
        taps.record(name, tensor, dims)


@dataclass
class _Point:
    """One place that is listened to, with the samples taken there."""

    variable: str
    dims: tuple[str, ...]
    label: int | str | None  # what the pattern's wildcards stand for; None for a function and what is handed over
    note: str
    pieces: list[Tensor] = field(default_factory=list)
    seen: int = 0  # examples
    taken: int = 0
    bytes: int = 0
    too_large: bool = False


class TensorTaps:
    """Taps on named modules and functions, open inside a `with` block.

    model: whose modules the patterns of `outputs`, `inputs` and `attention` name; None for functions alone.
    examples: at most so many entries along the first dimension of every tapped module (of all its calls together) or
    function call, the first ones. max_bytes: for all samples together, shared equally by the tapped places.
    What is left out by either is said in `left_out`. A sample is a copy, on the device where it was made until the
    block ends, then on the CPU. Entering again starts anew.

    In a pattern `*` stands for one part of a dotted name and `**` for any number of them. `dims` names the axes of one
    tensor; the places of one pattern with tensors of one shape are stacked along `stack`, labelled by what `*` matched.
    """

    def __init__(self, model: nn.Module | None = None, examples: int | None = None, max_bytes: int = 256 * 2**20):
        if examples is not None and examples < 1:
            raise ValueError(f"examples must be at least 1, got {examples}")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        self.model, self.examples, self.max_bytes = model, examples, max_bytes
        self._openers: list[Callable[[ExitStack], None]] = []
        self._stack_names: dict[str, str] = {}
        self._groups: dict[str, list[_Point]] = {}
        self._handed: set[str] = set()
        self._places = 0
        self._open: ExitStack | None = None

    # What to listen to

    def outputs(
        self,
        pattern: str,
        dims: Sequence[str],
        name: str | None = None,
        only: Collection[int | str] | None = None,
        pick: Pick = None,
        stack: str = "layer",
    ) -> TensorTaps:
        """What modules return. only: the layers (what `*` matched) to keep. pick: the index or field of a structure.

        Without `pick` the first tensor of a structure is taken. name: of the variable; the pattern's last word without
        it. Raises TokenariumError when nothing, or nothing that `only` names, matches.
        """
        return self._modules("output", pattern, dims, name, only, pick, stack)

    def inputs(
        self,
        pattern: str,
        dims: Sequence[str],
        name: str | None = None,
        only: Collection[int | str] | None = None,
        pick: Pick = None,
        stack: str = "layer",
    ) -> TensorTaps:
        """What modules are called with. pick: position or keyword; otherwise as `outputs`."""
        return self._modules("input", pattern, dims, name, only, pick, stack)

    def attention(
        self,
        pattern: str,
        dims: Sequence[str] = ("example", "head", "query", "key"),
        name: str | None = None,
        only: Collection[int | str] | None = None,
        stack: str = "layer",
    ) -> TensorTaps:
        """Attention probabilities of the attention modules of a `transformers` model, (batch, heads, queries, keys).

        The model goes on with its own implementation: where that keeps no probabilities (sdpa), they are computed
        beside it, for the sampled examples only, from the queries, keys and mask that it got.
        """
        return self._modules("attention", pattern, dims, name, only, None, stack)

    def calls(
        self, function: str, dims: Sequence[str], name: str | None = None, pick: Pick = None, stack: str = "call"
    ) -> TensorTaps:
        """What a function or method, given by its dotted name, returns; one entry along `stack` for every call.

        It is wrapped for the time of the block, also where its package or the notebook imported it by name.
        """
        owner, attribute, original = _resolve(function)
        variable = self._new(name or attribute, stack)
        self._places += 1

        def open_(stack_: ExitStack) -> None:
            def tapped(*arguments: Any, **options: Any) -> Any:
                result = original(*arguments, **options)
                self._call(variable, _picked(result, pick, function), dims, f"result of {function}")
                return result

            wrapper = functools.wraps(original)(tapped)
            for namespace in _holders(owner, attribute, original):
                # The raw entry, so that a static method is put back as one.
                raw = vars(namespace).get(attribute)
                new = staticmethod(wrapper) if isinstance(raw, staticmethod) else wrapper
                if raw is None:
                    stack_.callback(delattr, namespace, attribute)
                else:
                    stack_.callback(setattr, namespace, attribute, raw)
                setattr(namespace, attribute, new)

        self._openers.append(open_)
        return self

    def record(self, name: str, tensor: Tensor, dims: Sequence[str]) -> None:
        """Hand over a tensor from inside the block; one entry along `call` for every time it is called.

        A method that is not given the taps calls `tokenarium.study.taps.record`. Raises TokenariumError outside of the
        block, and for a name that a pattern has.
        """
        if self._open is None:
            raise TokenariumError(f"'{name}' is handed over outside of the block: record inside of `with taps:`")
        if name in self._stack_names and name not in self._handed:
            raise TokenariumError(f"'{name}' is the name of a tapped place: hand it over under another one")
        self._handed.add(name)
        self._stack_names[name] = "call"
        self._call(name, tensor, dims, f"handed over as {name}")

    # The block

    def __enter__(self) -> TensorTaps:
        if self._open is not None:
            raise TokenariumError("these taps are open already: leave the first block before entering another")
        for name in self._handed:
            del self._stack_names[name]
        self._handed.clear()
        self._groups = {variable: [] for variable in self._stack_names}
        with ExitStack() as stack:
            token = _active.set((*_active.get(), self))
            stack.callback(_active.reset, token)
            for open_ in self._openers:
                open_(stack)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        opened, self._open = self._open, None
        opened.close()
        for points in self._groups.values():
            for point in points:
                point.pieces = [piece.cpu() for piece in point.pieces]

    # What was found

    @property
    def size(self) -> int:
        """Bytes of all samples."""
        return sum(point.bytes for points in self._groups.values() for point in points)

    @property
    def left_out(self) -> dict[str, str]:
        """For each variable that is not whole, what is missing and why."""
        found = {}
        for variable, points in self._groups.items():
            short = [point for point in points if point.taken < point.seen]
            if not short:
                continue
            taken, seen = sum(point.taken for point in short), sum(point.seen for point in short)
            why = f"max_bytes={self.max_bytes}" if any(p.too_large for p in short) else f"examples={self.examples}"
            where = f" at {len(short)} of {len(points)} places" if len(points) > 1 else ""
            found[variable] = f"{seen - taken} of {seen} along '{short[0].dims[0]}'{where} ({why})"
        return found

    def dataset(self) -> xr.Dataset:
        """The samples as an xarray Dataset, the same kind that `tokenarium.tensors` opens.

        Places of one pattern whose tensors differ in shape become variables of their own, `name_<layer>`. What a module
        returned in several calls is joined along the first dimension; where the calls differ in the other dimensions,
        each has a variable, `name_<layer>_<call>`.
        """
        arrays, index = {}, {}
        for variable, tensors, entry in self._variables():
            arrays[variable] = as_numpy(tensors)
            index[variable] = entry
        dataset = build_dataset(index, arrays)
        dataset.attrs["left_out"] = "; ".join(f"{name}: {text}" for name, text in self.left_out.items())
        return dataset

    def save(self, study: Study) -> None:
        """Record every sample in a study, to be opened with `tokenarium.tensors(slug)`."""
        for variable, tensors, entry in self._variables():
            study.tensor(variable, tensors, entry["dims"], entry["note"], coords=entry["coords"])

    def __repr__(self) -> str:
        state = "open" if self._open is not None else "closed"
        lines = [f"TensorTaps ({state}): {self.size / 2**20:.1f} MiB of samples"]
        for variable, points in self._groups.items():
            missing = f"; left out: {self.left_out[variable]}" if variable in self.left_out else ""
            lines.append(f"  {variable}: {len(points)} x ({', '.join(points[0].dims) if points else ''}){missing}")
        return "\n".join(lines)

    # Inside

    def _new(self, variable: str, stack: str) -> str:
        if variable in self._stack_names:
            raise TokenariumError(f"two taps would be called '{variable}': give one of them a name=")
        self._stack_names[variable] = stack
        return variable

    def _modules(
        self,
        kind: str,
        pattern: str,
        dims: Sequence[str],
        name: str | None,
        only: Collection[int | str] | None,
        pick: Pick,
        stack: str,
    ) -> TensorTaps:
        if self.model is None:
            raise TokenariumError(f"'{pattern}' names modules: give TensorTaps the model")
        matched = _matches(self.model, pattern)
        if only is not None:
            unknown = [each for each in only if each not in matched]
            if unknown:
                raise TokenariumError(f"'{pattern}' has no {unknown[0]!r}; {nearest(str(unknown[0]), list(matched))}")
            matched = {label: module for label, module in matched.items() if label in only}
        words = [word for word in pattern.split(".") if "*" not in word]
        variable = self._new(name or (words[-1] if words else "model"), stack)
        self._places += len(matched)

        def open_(stack_: ExitStack) -> None:
            points = {
                path: _Point(variable, tuple(dims), label, f"{kind} of {path}") for label, (path, _) in matched.items()
            }
            self._groups[variable] += points.values()
            if kind == "attention":
                self._listen_to_attention(stack_, [(path, module, points[path]) for path, module in matched.values()])
                return
            for path, module in matched.values():
                if kind == "input":
                    hook = functools.partial(self._on_input, points[path], pick, path)
                    stack_.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                else:
                    hook = functools.partial(self._on_output, points[path], pick, path)
                    stack_.callback(module.register_forward_hook(hook).remove)

        self._openers.append(open_)
        return self

    def _on_input(self, point: _Point, pick: Pick, path: str, module: nn.Module, given: tuple, options: dict) -> None:
        structure = options if isinstance(pick, str) else (given or tuple(options.values()))
        self._keep(point, _picked(structure, pick, path))

    def _on_output(self, point: _Point, pick: Pick, path: str, module: nn.Module, given: tuple, result: Any) -> None:
        self._keep(point, _picked(result, pick, path))

    def _listen_to_attention(self, stack: ExitStack, places: list[tuple[str, nn.Module, _Point]]) -> None:
        listening: dict[str, dict[nn.Module, _Point]] = {}
        for path, module, point in places:
            implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
            if implementation is None:
                raise TokenariumError(f"{path} is no attention module of transformers: tap its outputs instead")
            if implementation == "eager":  # it returns the probabilities beside the values
                hook = functools.partial(self._on_output, point, 1, path)
                stack.callback(module.register_forward_hook(hook).remove)
            else:
                listening.setdefault(implementation, {})[module] = point
        for implementation, points in listening.items():
            self._wrap_attention(stack, implementation, points)

    def _wrap_attention(self, stack: ExitStack, implementation: str, points: dict[nn.Module, _Point]) -> None:
        """Compute probabilities beside the attention function that `implementation` names in transformers."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

        before = registry._local_mapping.get(implementation)
        original = registry[implementation]

        @functools.wraps(original)
        def tapped(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
        ) -> Any:
            if (point := points.get(module)) is not None:
                examples, heads, queries, _ = query.shape
                room = self._room(point, examples, heads * queries * key.shape[2] * query.element_size())
                if room:
                    shared_mask = attention_mask is None or attention_mask.shape[0] == 1
                    mask = attention_mask if shared_mask else attention_mask[:room]
                    found = attention_probabilities(module, query[:room], key[:room], mask, **options)
                    self._keep(point, found, seen=examples)
                else:
                    point.seen += examples
            return original(module, query, key, value, attention_mask, **options)

        def restore() -> None:
            if before is None:
                del registry[implementation]
            else:
                registry[implementation] = before

        stack.callback(restore)
        registry[implementation] = tapped

    def _call(self, variable: str, tensor: Tensor, dims: Sequence[str], note: str) -> None:
        points = self._groups.setdefault(variable, [])
        point = _Point(variable, tuple(dims), len(points), note)
        points.append(point)
        self._keep(point, tensor, shared=sum(each.bytes for each in points))

    def _room(self, point: _Point, examples: int, bytes_each: int, shared: int | None = None) -> int:
        """How many of `examples` more may be kept at `point`, at `bytes_each`."""
        room = examples if self.examples is None else min(examples, self.examples - point.taken)
        # Without a fair share the first layers would use up all the bytes and the last ones have none.
        left = self.max_bytes // max(1, self._places + len(self._handed)) - (point.bytes if shared is None else shared)
        fits = left // bytes_each if bytes_each else room
        if room > 0 and fits < room:
            point.too_large = True
        return max(0, min(room, fits))

    @torch.no_grad()
    def _keep(self, point: _Point, tensor: Any, seen: int | None = None, shared: int | None = None) -> None:
        if not isinstance(tensor, Tensor):
            raise TokenariumError(f"{point.note} is {type(tensor).__name__} and no tensor: choose a part with pick=")
        if tensor.ndim != len(point.dims):
            names = ", ".join(point.dims)
            raise TokenariumError(f"{point.note} has shape {tuple(tensor.shape)} but {len(point.dims)} names: {names}")
        if tensor.ndim == 0:
            tensor = tensor[None]
            point.dims = ("value",)
        examples = len(tensor)
        bytes_each = tensor[0].numel() * tensor.element_size() if examples else 0
        room = examples if seen is not None else self._room(point, examples, bytes_each, shared)
        point.seen += examples if seen is None else seen
        if room == 0 and examples:
            return
        point.pieces.append(tensor.detach()[:room].clone())
        point.taken += room
        point.bytes += room * bytes_each

    def _variables(self) -> list[tuple[str, Tensor, dict[str, Any]]]:
        """(name, tensor, index entry) of everything that was kept."""
        if self._open is not None:
            raise TokenariumError("the taps are still open: look at the samples after the block")
        found = []
        for variable, points in self._groups.items():
            points = [point for point in points if point.pieces]
            left = self.left_out.get(variable)
            note = (points[0].note if len(points) == 1 else _common(points)) if points else ""
            note += f"; left out: {left}" if left else ""
            joined = [_joined(point.pieces) for point in points]
            entry = {"dims": [], "note": note, "unit": "", "coords": {}}
            if joined and all(isinstance(each, Tensor) for each in joined):
                alike = len({(each.shape, each.dtype, p.dims) for each, p in zip(joined, points, strict=True)}) == 1
                if alike and len(points) == 1 and points[0].label is None:
                    found.append((variable, joined[0], entry | {"dims": list(points[0].dims)}))
                    continue
                if alike:
                    stack = self._stack_names[variable]
                    labels = [point.label for point in points]
                    dims, coords = [stack, *points[0].dims], {stack: labels}
                    found.append((variable, torch.stack(joined), entry | {"dims": dims, "coords": coords}))
                    continue
            for point, each in zip(points, joined, strict=True):
                own = variable if point.label is None else f"{variable}_{point.label}"
                entry |= {"dims": list(point.dims), "note": point.note}
                parts = {own: each} if isinstance(each, Tensor) else {f"{own}_{n}": part for n, part in enumerate(each)}
                found += [(name, part, entry) for name, part in parts.items()]
        return found


@torch.no_grad()
def attention_probabilities(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """softmax(query @ key^T * scaling + mask) as the attention functions of `transformers` define it.

    query: (batch, heads, queries, head_dim), key: (batch, key_heads, keys, head_dim) float, each key head serving
    heads / key_heads query heads. mask: bool (True: may look) or float to be added, broadcast to (batch, heads,
    queries, keys); without one the mask is causal where the module or `is_causal` says so. Returns (batch, heads,
    queries, keys) float of the query's dtype. Raises TokenariumError for attention with soft caps or sinks.
    """
    for unknown in ("softcap", "s_aux"):
        if options.get(unknown) is not None:
            raise TokenariumError(f"attention with '{unknown}' cannot be tapped: set attn_implementation='eager'")
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scale
    if position_bias is not None:
        scores = scores + position_bias
    if mask is not None:
        mask = mask[..., : key.shape[2]]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    elif query.shape[2] > 1 and (getattr(module, "is_causal", False) if is_causal is None else is_causal):
        may_look = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~may_look, -torch.inf)
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)


def _matches(model: nn.Module, pattern: str) -> dict[int | str | None, tuple[str, nn.Module]]:
    """Modules whose name the pattern matches: what its wildcards stand for -> (name, module)."""
    parts = re.split(r"(\*\*|\*)", pattern)
    expression = "".join({"**": "(.*)", "*": "([^.]*)"}.get(part, re.escape(part)) for part in parts)
    modules = dict(model.named_modules())
    found: dict[int | str | None, tuple[str, nn.Module]] = {}
    for path, module in modules.items():
        if match := re.fullmatch(expression, path):
            words = match.groups()
            label: int | str | None = ".".join(words) if words else None
            found[int(label) if label is not None and label.isdecimal() else label] = (path, module)
    if not found:
        raise TokenariumError(
            f"no module is called '{pattern}'; {nearest(pattern, [name for name in modules if name])}"
        )
    return found


def _resolve(dotted: str) -> tuple[Any, str, Callable[..., Any]]:
    """The module or class that holds a function, the function's name there, and the function."""
    parts = dotted.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:-1]:
            owner = getattr(owner, part, None)
        function = getattr(owner, parts[-1], None)
        if callable(function):
            return owner, parts[-1], function
        names = [name for name in vars(owner) if not name.startswith("_")] if owner is not None else []
        raise TokenariumError(f"no function is called '{dotted}'; {nearest(parts[-1], names)}")
    raise TokenariumError(f"no function is called '{dotted}': give its dotted name, package first")


def _holders(owner: Any, attribute: str, original: Callable[..., Any]) -> list[Any]:
    """`owner`, and the modules of its package and the notebook that imported the function by its name."""
    package = getattr(owner, "__module__", getattr(owner, "__name__", "")).partition(".")[0]
    modules = [
        module
        for name, module in list(sys.modules.items())
        if module is not owner and (name == "__main__" or name.partition(".")[0] == package)
    ]
    return [owner, *(module for module in modules if getattr(module, "__dict__", {}).get(attribute) is original)]


def _picked(structure: Any, pick: Pick, path: str) -> Any:
    """The part of a structure that `pick` names; without it a tensor itself, or the first tensor of a structure."""
    if pick is None:
        if isinstance(structure, Tensor):
            return structure
        parts = structure.values() if isinstance(structure, Mapping) else structure
        if isinstance(parts, tuple | list) or isinstance(structure, Mapping):
            return next((part for part in parts if isinstance(part, Tensor)), structure)
        return structure
    try:
        if isinstance(pick, str) and not isinstance(structure, Mapping):
            return getattr(structure, pick)
        return structure[pick]
    except (AttributeError, IndexError, KeyError, TypeError):
        raise TokenariumError(f"{path} has no part {pick!r}: choose another with pick=") from None


def _joined(pieces: list[Tensor]) -> Tensor | list[Tensor]:
    """Pieces joined along the first dimension, or themselves where the others differ."""
    if len({(piece.shape[1:], piece.dtype) for piece in pieces}) == 1:
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return pieces


def _common(points: list[_Point]) -> str:
    first, last = points[0].note, points[-1].note
    return first if first == last else f"{first} to {last.split()[-1]}"
