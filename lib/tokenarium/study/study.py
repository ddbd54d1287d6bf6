"""What a notebook opens: its parameters, and the place where its results go."""

from __future__ import annotations

import html
import inspect
import io
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from tokenarium.errors import TokenariumError
from tokenarium.files import replace_directory, write_json, write_whole
from tokenarium.markdown import cell
from tokenarium.measure.bootstrap import Interval
from tokenarium.measure.claims import Judgement, Metric, PaperClaims, judge, load_claims
from tokenarium.run.gpu import confine, reserve
from tokenarium.study import OUTPUT_VARIABLE
from tokenarium.study.batches import halving
from tokenarium.study.dataset import INDEX_FILE, TENSORS_FILE, as_numpy
from tokenarium.study.experiments import Results, open_results
from tokenarium.study.offline import keep_offline
from tokenarium.study.parameters import ARENA, Parameters, find_study, load_params, project_root, study_parameters
from tokenarium.study.provenance import peak_memory, provenance
from tokenarium.study.style import use_style
from tokenarium.study.tables import with_intervals

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

T = TypeVar("T")


def open_study(
    slug: str,
    profile: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> Study:
    """Open the study of the paper `slug`, or of a family's arena ("arena/vision").

    profile: smoke, cpu or gpu; None takes the one in params.yaml. overrides: parameter values for this run only.
    Raises TokenariumError for an unknown slug, profile or parameter, each with the nearest known name.
    """
    root = project_root(root)
    params = load_params(root)
    return Study(root, params, slug, profile or params["profile"], overrides or {})


class Study:
    """One run of one notebook.

    slug, profile, parameters, seeds, device and dtype say what to run; `metric`, `table`, `figure`, `tensor` and
    `evaluation` record what came out; `finish` writes all of it, whole, and shows the verdict.
    """

    def __init__(self, root: Path, params: Mapping[str, Any], slug: str, profile: str, overrides: Mapping[str, Any]):
        import torch

        self.root, self.slug, self.profile = root, slug, profile
        self._params = params
        section, name = find_study(params, slug)
        self.parameters: Parameters = study_parameters(params, section, name, profile, overrides)
        self.family: str = params[section][name]["family"]
        self.seeds: list[int] = list(params["seeds"])
        self.lease = reserve(params, f"{section.removesuffix('s')}@{name}", profile)
        if self.lease:
            confine(self.lease)
        self.device = torch.device("cuda" if self.lease else "mps" if torch.backends.mps.is_available() else "cpu")
        self.dtype = torch.float32
        self.claims: PaperClaims | None = None
        if section == "papers":
            self.claims = load_claims(root / "notebooks" / self.family / f"{slug}.claims.yaml")
        self._metrics: dict[str, Metric] = {}
        self._tables: dict[str, tuple[pd.DataFrame, str]] = {}
        self._figures: dict[str, tuple[dict[str, bytes], str]] = {}
        self._tensors: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
        self._evaluations: dict[str, np.ndarray] = {}
        self._overridden = bool(overrides)
        self._started = time.monotonic()
        keep_offline(profile)
        torch.manual_seed(self.seeds[0])
        np.random.seed(self.seeds[0])  # noqa: NPY002 (what libraries use unasked must be fixed too)
        use_style()
        output = os.environ.get(OUTPUT_VARIABLE)
        self.output = Path(output) if output else root / ".tokenarium" / "by-hand" / slug

    def __repr__(self) -> str:
        return f"Study({self.slug!r}, profile={self.profile!r}, device={self.device}, seeds={self.seeds})"

    # Recording

    def metric(
        self,
        name: str,
        value: float | Interval,
        interval: tuple[float, float] | None = None,
        how: str | None = None,
        unit: str = "",
        seeds: Mapping[int, Interval] | None = None,
    ) -> Metric:
        """Record a number with its interval.

        value: a number together with `interval` (low, high) and `how` it was made, or an Interval that has all three.
        seeds: the same measured on every substrate seed. Raises TokenariumError, naming the metric, for NaN, infinity,
        a number without an interval and a name that is already taken.
        """
        _free("metric", name, self._metrics)
        if not isinstance(value, Interval):
            if interval is None or how is None:
                raise TokenariumError(f"metric '{name}' needs interval=(low, high) and how it was made")
            try:
                value = Interval(value, *interval, how=how)
            except ValueError as error:
                raise TokenariumError(f"metric '{name}': {error}") from None
        self._metrics[name] = Metric.of(name, value, unit, seeds)
        return self._metrics[name]

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What was recorded so far, by name."""
        return dict(self._metrics)

    def table(self, name: str, frame: pd.DataFrame, caption: str) -> HTML:
        """Record a table (tables/<name>.csv) and return it for display, numbers and their intervals in one cell.

        Columns `x_low` and `x_high` are the interval of column `x`. Raises TokenariumError for a name that is taken.
        """
        self._tables[_free("table", _plain(name), self._tables)] = (frame.copy(), caption)
        body = with_intervals(frame).to_html(index=False, border=0)
        return HTML(f"<p><strong>{html.escape(caption)}</strong></p>{body}")

    def figure(self, name: str, figure: Figure, caption: str) -> Figure:
        """Record a matplotlib figure (figures/<name>.svg and .png) and return it for display.

        Raises TokenariumError for a name that is taken.
        """
        _free("figure", _plain(name), self._figures)
        drawn = {}
        for kind in ("svg", "png"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            drawn[kind] = buffer.getvalue()
        self._figures[name] = (drawn, caption)
        return figure

    def tensor(
        self,
        name: str,
        values: torch.Tensor | np.ndarray,
        dims: Sequence[str],
        note: str,
        unit: str = "",
        coords: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Record a tensor with named dimensions, to be opened later with `tokenarium.tensors(slug)`.

        dims: one name per axis. note: a sentence on what it is. coords: labels along some of the dimensions.
        Raises TokenariumError when names and axes do not match, for anything but numbers, and for a name that is taken.
        """
        array = as_numpy(values)
        if array.dtype.kind not in "biuf":
            raise TokenariumError(f"tensor '{name}' holds {array.dtype}: record numbers")
        if array.ndim != len(dims):
            raise TokenariumError(f"tensor '{name}' has {array.ndim} axes but {len(dims)} names: {', '.join(dims)}")
        if len(set(dims)) < len(dims):
            raise TokenariumError(f"tensor '{name}' needs a name of its own for every axis, got {', '.join(dims)}")
        labels = {dim: np.asarray(each).tolist() for dim, each in (coords or {}).items()}
        for dim, each in labels.items():
            if dim not in dims or len(each) != array.shape[list(dims).index(dim)]:
                raise TokenariumError(f"tensor '{name}': the labels of '{dim}' do not fit its shape {array.shape}")
        index = {"dims": list(dims), "note": note, "unit": unit, "coords": labels}
        self._tensors[_free("tensor", _plain(name), self._tensors)] = (array, index)

    def evaluation(self, name: str, values: torch.Tensor | np.ndarray) -> None:
        """Hand per-example results to the family's arena, e.g. "tome/0.6/0" -> logits (images, classes).

        Raises TokenariumError for a name that is taken.
        """
        self._evaluations[_free("evaluation", name, self._evaluations)] = as_numpy(values)

    def experiment(self, name: str) -> Results:
        """What the stage experiment@<name> made. Raises TokenariumError when it was not run at this profile."""
        return open_results(self.root, self._params, name, self.profile)

    def progress(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        """Iterate with a progress bar."""
        from tqdm.auto import tqdm

        return tqdm(items, desc=label, total=total, mininterval=1.0)

    def batched(self, work: Callable[[int], T], batch_size: int, *, independent: bool) -> T:
        """Call `work(batch_size)`, and where memory runs out again with half the batch, at most three times.

        independent: no example of a batch changes the result of another, so that the batch size changes nothing; where
        it does, nothing is tried again. `work` starts from the beginning each time.
        Raises TokenariumError, with what to change, when the memory does not suffice.
        """
        return halving(work, batch_size, 3 if independent else 0, self._out_of_memory)

    def _out_of_memory(self, batch_size: int) -> str:
        stage = f"{'arena' if self.claims is None else 'paper'}@{self.slug.removeprefix(ARENA)}"
        more = (
            f"declare more gpu_memory_gb for {stage} under `resources`" if self.lease else "run it on a larger machine"
        )
        return f"{self.slug} is out of memory on {self.device} at batch size {batch_size}: lower it, or {more}"

    # Showing

    def show_claims(self) -> Markdown:
        """The paper's claims with its own figures and the rules fixed in advance, as a table."""
        rows = ["| claim | statement | the paper's figure | holds if |", "|---|---|---|---|"]
        for claim in self._need_claims().claims:
            rule = f"`{claim.holds_if.text}`" if claim.holds_if else f"*not tested here: {cell(claim.not_testable)}*"
            name = f"**{claim.id}**" if claim.headline else claim.id
            statement, figure = cell(claim.statement), cell(claim.paper_figure) or "—"
            rows.append(f"| {name} | {statement} | {figure} | {rule} |")
        return Markdown("\n".join(rows))

    def show_source(self, *functions: Callable[..., Any]) -> Markdown:
        """The source of the method's own functions."""
        sources = "\n\n".join(inspect.getsource(function).rstrip() for function in functions)
        return Markdown(f"```python\n{sources}\n```")

    def judge(self) -> Judgement:
        """The verdict on what was recorded so far."""
        return judge(self._need_claims(), self._metrics, self.profile)

    def finish(self) -> Markdown:
        """Write everything that was recorded, whole or not at all, and return the verdict for display.

        Run by `tokenarium study` it goes to reports/<slug>; typed by hand, to .tokenarium/by-hand/<slug>.
        """
        if not self._metrics:
            raise TokenariumError(f"{self.slug}: nothing was recorded; call study.metric(...) before study.finish()")
        staged = self.output.with_name(f".{self.output.name}.partial")
        shutil.rmtree(staged, ignore_errors=True)
        self._write(staged)
        replace_directory(staged, self.output)
        where = os.path.relpath(self.output, self.root)
        if self.claims is None:
            return Markdown(f"{len(self._metrics)} metrics at profile `{self.profile}`, written to `{where}`.")
        return Markdown(_verdict_text(self.judge()) + f"\n\nWritten to `{where}`.")

    def _write(self, folder: Path) -> None:
        from safetensors.numpy import save

        numbers = {
            name: {"value": metric.value, "low": metric.low, "high": metric.high}
            for name, metric in self._metrics.items()
        }
        write_json(folder / "metrics.json", numbers)
        write_json(
            folder / "evidence.json",
            {
                "slug": self.slug,
                "family": self.family,
                "profile": self.profile,
                "overridden": self._overridden,
                "seeds": self.seeds,
                "parameters": self.parameters.to_dict(),
                "metrics": {name: metric.to_dict() for name, metric in self._metrics.items()},
                "tables": {name: caption for name, (_, caption) in self._tables.items()},
                "figures": {name: caption for name, (_, caption) in self._figures.items()},
                "tensors": {name: index["note"] for name, (_, index) in self._tensors.items()},
            },
        )
        for name, (frame, _) in self._tables.items():
            with write_whole(folder / "tables" / f"{name}.csv") as file:
                frame.to_csv(file, index=False, lineterminator="\n", float_format="%.6g")
        for name, (drawn, _) in self._figures.items():
            for kind, content in drawn.items():
                with write_whole(folder / "figures" / f"{name}.{kind}", "wb") as file:
                    file.write(content)
        for subfolder in ("tables", "figures"):
            (folder / subfolder).mkdir(exist_ok=True)
        with write_whole(folder / "tensors" / TENSORS_FILE, "wb") as file:
            file.write(save({name: array for name, (array, _) in self._tensors.items()}))
        write_json(folder / "tensors" / INDEX_FILE, {name: index for name, (_, index) in self._tensors.items()})
        with write_whole(folder / "evaluations" / "results.safetensors", "wb") as file:
            file.write(save(self._evaluations))
        write_json(
            folder / "provenance.json",
            {
                **provenance(self.root),
                "device": str(self.device),
                "seconds": round(time.monotonic() - self._started, 1),
                "peak_memory_bytes": peak_memory(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )

    def _need_claims(self) -> PaperClaims:
        if self.claims is None:
            raise TokenariumError(f"{self.slug} is an arena: it has no claims file")
        return self.claims


def _verdict_text(judgement: Judgement) -> str:
    """The verdict of one run as Markdown: a line, then a table of the claims with the numbers put in."""
    lines = [f"## Verdict at profile `{judgement.profile}`: {judgement.verdict}", ""]
    if judgement.paper.note:
        lines += [f"> {judgement.paper.note}", ""]
    lines += ["| claim | outcome | why |", "|---|---|---|"]
    for result in judgement.claims:
        why = "; ".join(result.working) or result.reason
        lines.append(f"| {result.claim.id} | {result.outcome} | {cell(why)} |")
    for gate in judgement.gates:
        working = cell("; ".join(gate.working))
        lines.append(f"| gate {gate.gate.id} | {'open' if gate.passed else 'closed'} | {working} |")
    return "\n".join(lines)


def _free(kind: str, name: str, taken: Mapping[str, Any]) -> str:
    if name in taken:
        raise TokenariumError(f"{kind} '{name}' is recorded twice: give the second one its own name")
    return name


def _plain(name: str) -> str:
    if not name or not all(character.isalnum() or character in "-_" for character in name):
        raise TokenariumError(f"'{name}' cannot name a file: use letters, digits, '-' and '_'")
    return name
