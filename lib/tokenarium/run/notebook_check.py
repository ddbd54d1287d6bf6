"""What every committed notebook has to be, checked without running it: one line for each broken rule.

Three kinds of notebook: a paper's (title, parameters, claims, idea, method, experiment, figures, tensors, verdict), an
arena's (title, parameters, table, figure, metrics), and any other directly below notebooks/, which reads results only.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenarium.errors import TokenariumError
from tokenarium.measure.claims import load_claims
from tokenarium.run.papers import NOT_WRITTEN
from tokenarium.study.parameters import ARENA, find_study, load_params

LONGEST = 40  # lines of a cell
IMPORT_LINE = "import tokenarium"
EQUATION = re.compile(r"\$[^$]*[=\\^_+<>][^$]*\$")
MARKDOWN, CODE = "markdown", "code"


@dataclass(frozen=True)
class Cell:
    """One cell as it is committed. number: from 1, as people count."""

    number: int
    raw: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return self.raw["cell_type"]

    @property
    def source(self) -> str:
        text = self.raw["source"]
        return (text if isinstance(text, str) else "".join(text)).strip()

    @property
    def tags(self) -> list[str]:
        return self.raw.get("metadata", {}).get("tags", [])

    def calls(self, name: str) -> bool:
        """Whether the code calls `name`, such as "study.figure"."""
        return self.kind == CODE and any(ast.unparse(call.func) == name for call in self.called())

    def called(self) -> list[ast.Call]:
        return [node for node in ast.walk(self.tree()) if isinstance(node, ast.Call)]

    def tree(self) -> ast.Module:
        """The code, empty where it does not compile (a rule of its own)."""
        try:
            return ast.parse(self.source)
        except SyntaxError:
            return ast.Module(body=[], type_ignores=[])

    def headings(self) -> list[str]:
        return [line for line in self.source.splitlines() if self.kind == MARKDOWN and re.match("#+ ", line)]


@dataclass(frozen=True)
class Problem:
    """A broken rule. cell: its number from 1, or None for the notebook as a whole. mend: what to do."""

    notebook: str
    cell: int | None
    mend: str

    def __str__(self) -> str:
        return f"{self.notebook}{f' cell {self.cell}' if self.cell else ''}: {self.mend}"


def check_notebooks(root: Path, slug: str | None = None) -> list[Problem]:
    """Every broken rule in all notebooks below `root`, or in one study's.

    Raises TokenariumError for an unknown slug.
    """
    params = load_params(root)
    folder = root / "notebooks"
    known = {f"{entry['family']}/{name}": name for name, entry in params["papers"].items()}
    known |= {f"arena/{name}": f"{ARENA}{name}" for name in params["arenas"]}
    if slug is not None:
        section, name = find_study(params, slug)
        place = slug if section == "arenas" else f"{params[section][name]['family']}/{slug}"
        return check_notebook(root, folder / f"{place}.ipynb", slug)
    problems = []
    for path in sorted({*folder.rglob("*.ipynb"), *(folder / f"{place}.ipynb" for place in known)}):
        if ".ipynb_checkpoints" in path.parts:
            continue
        place = path.relative_to(folder).with_suffix("").as_posix()
        if "/" in place and place not in known:
            problems.append(Problem(_name(root, path), None, "is no paper or arena of params.yaml: add it there"))
        else:
            problems += check_notebook(root, path, known.get(place))
    return problems


def check_notebook(root: Path, path: Path, slug: str | None) -> list[Problem]:
    """Every broken rule of one notebook. slug: a paper, an arena ("arena/vision"), or None for one that only reads."""
    name = _name(root, path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [Cell(number, raw) for number, raw in enumerate(content["cells"], 1)]
        sources = [cell.source for cell in cells if cell.kind]
    except FileNotFoundError:
        return [Problem(name, None, "is missing: write it, or take it out of params.yaml")]
    except (OSError, ValueError, KeyError, TypeError):
        return [Problem(name, None, "is no notebook: restore it from git")]
    if not sources:
        return [Problem(name, None, "has no cells: write it")]
    rules: list[Rule] = [_format, _committed, _ids, _short, _title]
    if slug is None:
        rules += [_reads_only]
    else:
        rules += [_parameters, _opening, _finish]
        rules += [_arena] if slug.startswith(ARENA) else [_claims, _paper]
    return [Problem(name, *found) for rule in rules for found in rule(Notebook(root, path, slug or "", content, cells))]


@dataclass(frozen=True)
class Notebook:
    """What the rules look at."""

    root: Path
    path: Path
    slug: str
    content: Mapping[str, Any]
    cells: list[Cell]

    @property
    def code(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.kind == CODE]

    def first(self, test: Callable[[Cell], bool]) -> Cell | None:
        return next((cell for cell in self.cells if test(cell)), None)


Found = Iterator[tuple[int | None, str]]
Rule = Callable[[Notebook], Found]


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _format(notebook: Notebook) -> Found:
    import nbformat

    version = (notebook.content.get("nbformat"), notebook.content.get("nbformat_minor", 0))
    if version[0] != 4 or version[1] < 5:
        # Before 4.5 cells have no ids of their own, and every reader invents others.
        yield None, "is not in notebook format 4.5, whose cells keep their ids: open and save it in JupyterLab"
        return
    if unlike := [cell for cell in notebook.cells if cell.kind not in (MARKDOWN, CODE)]:
        yield unlike[0].number, f"is a {unlike[0].kind} cell: make it markdown or code"
    try:
        with warnings.catch_warnings(action="ignore"):  # ids that are missing or taken have a rule of their own
            nbformat.validate(nbformat.from_dict(notebook.content))
    except nbformat.ValidationError as error:
        yield None, f"is not valid ({str(error).splitlines()[0]}): open and save it in JupyterLab"


def _committed(notebook: Notebook) -> Found:
    for cell in notebook.code:
        if cell.raw.get("outputs"):
            yield cell.number, "has outputs: strip them with `nbstripout --keep-id`"
        if cell.raw.get("execution_count") is not None:
            yield cell.number, "has an execution count: strip it with `nbstripout --keep-id`"


def _ids(notebook: Notebook) -> Found:
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        name = cell.raw.get("id")
        if not name:
            yield cell.number, "has no id: open and save the notebook in JupyterLab"
        elif name in seen:
            yield cell.number, f"has the id {name} of cell {seen[name]}: give it another one"
        else:
            seen[name] = cell.number


def _short(notebook: Notebook) -> Found:
    for cell in notebook.cells:
        lines = len(cell.source.splitlines())
        if lines > LONGEST:
            where = "move what is longer than about 15 lines to lib" if cell.kind == CODE else "split it"
            yield cell.number, f"has {lines} lines, at most {LONGEST} are read in one go: {where}"
        if cell.kind == CODE:
            try:
                ast.parse(cell.source)
            except SyntaxError as error:
                yield cell.number, f"is no Python (line {error.lineno}: {error.msg}): correct it"


def _title(notebook: Notebook) -> Found:
    first = notebook.cells[0]
    if first.kind != MARKDOWN or not first.source.startswith("# "):
        yield 1, "is not the title: begin with a markdown cell '# <title>'"
    for cell in notebook.cells[1:]:
        if any(heading.startswith("# ") for heading in cell.headings()):
            yield cell.number, "has a second title: begin its heading with '## '"


def _parameters(notebook: Notebook) -> Found:
    tagged = [cell for cell in notebook.cells if "parameters" in cell.tags]
    if not tagged:
        yield None, "has no cell tagged 'parameters': tag the first code cell, 'profile = None'"
        return
    for cell in tagged[1:]:
        yield cell.number, "is a second cell tagged 'parameters': take the tag off"
    cell = tagged[0]
    if cell is not next(iter(notebook.code), None):
        yield cell.number, "is tagged 'parameters' but not the first code cell: move it there"
    if [ast.unparse(node) for node in cell.tree().body] != ["profile = None"]:
        yield cell.number, "must be 'profile = None' alone: other parameters belong in params.yaml"


def _opening(notebook: Notebook) -> Found:
    """The second code cell holds all imports, with the one line that is the same everywhere, and opens the study."""
    opened = [cell for cell in notebook.code if cell.calls("tokenarium.open_study")]
    call = f"study = tokenarium.open_study({notebook.slug!r}, profile=profile)".replace("'", '"')
    if not opened:
        yield None, f"opens no study: write '{call}' below the imports"
        return
    for cell in opened[1:]:
        yield cell.number, "opens a second study: use the one that is open"
    cell = opened[0]
    if notebook.code.index(cell) != 1:
        yield cell.number, "opens the study: make it the code cell after the parameters"
    if IMPORT_LINE not in cell.source.splitlines():
        yield cell.number, f"lacks the line '{IMPORT_LINE}': write it below the imports of other packages"
    if not any(ast.unparse(node).replace("'", '"') == call for node in cell.tree().body):
        yield cell.number, f"does not open its own study: write '{call}'"
    for other in notebook.code:
        if other is not cell and any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(other.tree())):
            yield other.number, f"imports: move it to cell {cell.number}, where all imports are"


def _finish(notebook: Notebook) -> Found:
    last = notebook.cells[-1]
    if last.source != "study.finish()":
        yield last.number, "is the last cell and not 'study.finish()': end with it"
    for cell in notebook.code:
        if cell is not last and cell.calls("study.finish"):
            yield cell.number, "calls study.finish() before the end: only the last cell does"


def _arena(notebook: Notebook) -> Found:
    yield from _missing(
        notebook,
        ("study.table", "shows no table: add study.table(...)"),
        ("study.figure", "draws no figure: add study.figure(...)"),
        ("study.metric", "records no metric: add study.metric(...)"),
    )


def _claims(notebook: Notebook) -> Found:
    """The claims stand in their own file, and the title names the paper that they are of."""
    path = notebook.path.with_suffix("").with_suffix(".claims.yaml")
    try:
        claims = load_claims(path)
    except TokenariumError as error:
        yield None, str(error).replace(f"{notebook.root}/", "")
        return
    if claims.family != notebook.path.parent.name:
        yield (
            None,
            f"lies in {notebook.path.parent.name}, but its claims are of the family {claims.family}: correct one",
        )
    unwritten = [claim.id for claim in claims.claims if claim.holds_if and NOT_WRITTEN in claim.holds_if.metric_names]
    if unwritten:
        yield None, f"has claims that are not written ({', '.join(unwritten)}): write them in {path.name}"
    if claims.arxiv not in notebook.cells[0].source:
        yield 1, f"does not name the paper: add arXiv {claims.arxiv}"


def _paper(notebook: Notebook) -> Found:
    steps: list[tuple[str, Cell | None]] = []
    shown = notebook.first(lambda cell: cell.calls("study.show_claims"))
    if shown is None:
        yield None, "shows no claims: add a cell 'study.show_claims()', the table comes from the claims file"
    elif shown.source != "study.show_claims()":
        yield shown.number, "does more than show the claims: leave 'study.show_claims()' alone in it"
    steps.append(("the claims", shown))

    idea = notebook.first(lambda cell: cell.number > 1 and cell.kind == MARKDOWN and bool(EQUATION.search(cell.source)))
    if idea is None:
        yield None, "has no idea with equations: say in a markdown cell, with $...$, what the method does"
    steps.append(("the idea", idea))

    source = notebook.first(lambda cell: cell.calls("study.show_source"))
    if source is None:
        yield None, "does not show the method: add 'study.show_source(...)' with its functions"
    elif not _shows_own_method(notebook, source):
        yield source.number, f"shows nothing of the paper's own module: name a function of {_module(notebook)}"
    steps.append(("the method's source", source))

    measured = notebook.first(lambda cell: cell.calls("study.metric"))
    steps.append(("the experiment", measured))
    yield from _missing(
        notebook,
        ("study.metric", "records no metric: add study.metric(...) for every claim"),
        ("study.table", "shows no table: add study.table(...)"),
        ("study.figure", "draws no figure: add study.figure(...)"),
        ("study.tensor", "keeps no tensor to look inside: add study.tensor(...)"),
    )
    verdict = notebook.first(lambda cell: any(re.match("## .*[Vv]erdict", heading) for heading in cell.headings()))
    if verdict is None:
        yield None, "has no heading '## Verdict': write above the last cell how to read it"
    steps.append(("the verdict", verdict))
    present = [(label, cell.number) for label, cell in steps if cell is not None]
    for (before, one), (after, other) in itertools.pairwise(present):
        if other < one:
            yield other, f"{after} comes before {before} (cell {one}): put it below"


def _missing(notebook: Notebook, *wanted: tuple[str, str]) -> Found:
    for call, mend in wanted:
        if notebook.first(lambda cell, call=call: cell.calls(call)) is None:
            yield None, mend


def _module(notebook: Notebook) -> str:
    return f"tokenarium.methods.{notebook.path.parent.name}.{notebook.slug.replace('-', '_')}"


def _shows_own_method(notebook: Notebook, cell: Cell) -> bool:
    """Whether an argument of study.show_source is a function or class of the paper's own module."""
    module = _module(notebook)
    names = {}
    for node in (node for each in notebook.code for node in ast.walk(each.tree())):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    calls = [call for call in cell.called() if ast.unparse(call.func) == "study.show_source"]
    for argument in (ast.unparse(argument) for call in calls for argument in call.args):
        first, _, rest = argument.partition(".")
        whole = f"{names.get(first, first)}.{rest}".rstrip(".")
        if whole.startswith(f"{module}."):
            return True
    return False


def _reads_only(notebook: Notebook) -> Found:
    if not any(IMPORT_LINE in cell.source.splitlines() for cell in notebook.code):
        yield None, f"lacks the line '{IMPORT_LINE}': open results with it"
