"""A project of one small paper and its arena, for what needs a checkout but neither models nor data."""

import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A shell lets its background jobs ignore SIGINT, and every process below them: tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

PARAMS = """\
profile: cpu
seeds: [3, 4]
data: {}
models: {}
recipes: {}
families:
  toys:
    smoke: &toys {images: 4, budgets: [0.5], resamples: 10}
    cpu: {<<: *toys, images: 8}
    gpu: *toys
experiments:
  long:
    paper: tiny
    family: toys
    module: long
    reads: []
    smoke: &long {steps: 1}
    cpu: {<<: *long, steps: 3}
    gpu: *long
papers:
  tiny:
    family: toys
    reads: []
    smoke: &tiny {alpha: 0.1, tau: {low: 1, high: 2}}
    cpu: {<<: *tiny, alpha: 0.5}
    gpu: {<<: *tiny, alpha: 0.9}
arenas:
  toys:
    family: toys
    smoke: &arena {focus: 0.5}
    cpu: *arena
    gpu: *arena
"""
CLAIMS = """\
paper: tiny
title: "Tiny: [small] steps <b>ahead</b>"
arxiv: "2401.00001"
family: toys
note: a model of one number
gates:
  - id: G0
    statement: there is something to lose
    holds_if: top1 >= 80
    otherwise: "inconclusive: saturated"
    guards: [C1]
claims:
  - id: C1
    statement: a < b | c & <script>alert(1)</script> gains
    paper_figure: "2 % <i>more</i> | less"
    headline: true
    holds_if: gain.low > 0
  - id: C2
    statement: it also works elsewhere
    not_testable: no elsewhere | at this scale
"""


@pytest.fixture(scope="session", autouse=True)
def runtime() -> Iterator[Path]:
    """The fork servers of warm kernels are this session's own, and end with it; returns the folder they live in."""
    from tokenarium.run.warm import client

    folder = Path(tempfile.mkdtemp(prefix="tk-"))  # a socket's path must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder / "tokenarium"
    client.retire(folder / "tokenarium")
    shutil.rmtree(folder)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with params.yaml, dvc.yaml and the claims of the paper `tiny`, family `toys`, profile cpu."""
    root = tmp_path / "project"
    (root / "notebooks" / "toys").mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "notebooks" / "toys" / "tiny.claims.yaml").write_text(CLAIMS)
    return root


@pytest.fixture
def change() -> Callable[..., None]:
    """Replace the one place of a file that matches a regular expression."""

    def change(path: Path, pattern: str, replacement: str) -> None:
        text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
        assert count == 1, f"{pattern} matches {count} places"
        path.write_text(text)

    return change


@pytest.fixture
def finish(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Finish the study of a slug as the runner does, with one table and one figure; returns reports/<slug>."""

    def finish(slug: str = "tiny", profile: str = "cpu", gain: float = 2.0) -> Path:
        import pandas as pd
        from matplotlib.figure import Figure

        from tokenarium.study import open_study

        folder = project / "reports" / slug
        monkeypatch.setenv("TOKENARIUM_OUTPUT", str(folder))
        study = open_study(slug, profile=profile, root=project)
        study.metric("gain", gain, (gain - 1, gain + 1), how="by hand", unit="points <&>")
        study.metric("top1", 90.25, (89, 91), how="by hand", unit="%")
        study.table("budgets", pd.DataFrame({"method": ["<b>ToMe</b>"], "kl": [0.125]}), "Methods & <i>costs</i>")
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1], [0, gain])
        study.figure("curve", figure, 'The "curve" & <i>more</i>')
        study.finish()
        return folder

    return finish
