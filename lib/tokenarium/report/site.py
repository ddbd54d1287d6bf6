"""The report as a site: pages written, built by Sphinx where they changed, and put in their place whole.

The work lies in .tokenarium/report: `source` (pages, written only when their content changed), `doctrees` (Sphinx's
memory of them) and `html`. A page that did not change is neither read nor written again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenarium.errors import TokenariumError
from tokenarium.files import locked, replace_directory, sha256, write_whole
from tokenarium.report.studies import families_of, page_name

_CODE = Path(__file__).parent
_TOOLS = ("Sphinx", "docutils", "furo", "myst-nb", "myst-parser", "Pygments")
# Sphinx's notes to itself, which name machine paths and times of building.
_SCRATCH = (".buildinfo", ".buildinfo.bak", "objects.inv")


def build_site(root: Path, pages: Mapping[str, str], studies: Sequence[Mapping[str, Any]]) -> Path:
    """Build reports/site from `pages` and return it.

    pages: content by path below the source folder, "papers/pitome.md" or "notebooks/pitome.ipynb". The results of the
    `studies` are copied beside the pages, and their tensors to pages of their own. Raises TokenariumError when Sphinx
    stops; the last site then stays.
    """
    work = root / ".tokenarium" / "report"
    with locked(root / ".tokenarium" / "locks" / "report"):
        _forget_other_code(work)
        _write_changed(work / "source", pages)
        _run_sphinx(work, families_of(studies))
        site = root / "reports" / "site"
        staged = site.with_name(".site.partial")
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(work / "html", staged, ignore=shutil.ignore_patterns(*_SCRATCH), copy_function=_publish)
        for study in studies:
            _copy_results(root, study, staged / "files" / page_name(study["slug"]))
            if page := tensor_page(root, study["slug"]):
                (staged / "tensors").mkdir(exist_ok=True)
                shutil.copy2(page, staged / "tensors")
        replace_directory(staged, site)
    return site


def tensor_page(root: Path, slug: str) -> Path | None:
    """The page for looking into the tensors of `slug`, made anew when they changed; None where there are none."""
    from tokenarium.study import explorer
    from tokenarium.study.dataset import INDEX_FILE, TENSORS_FILE

    folder = root / "reports" / slug
    tensors = [folder / "tensors" / name for name in (INDEX_FILE, TENSORS_FILE)]
    if not all(path.is_file() for path in tensors) or not json.loads(tensors[0].read_text(encoding="utf-8")):
        return None
    code = _code(_CODE.with_name("study"))
    digest = hashlib.sha256("".join(map(sha256, [*tensors, *code])).encode()).hexdigest()
    page = root / ".tokenarium" / "tensor-pages" / digest / f"{page_name(slug)}.html"
    if not page.is_file():
        for old in page.parent.parent.glob(f"*/{page.name}"):
            shutil.rmtree(old.parent)
        page.parent.mkdir(parents=True, exist_ok=True)
        explorer.write_page(folder, page)
    return page


def _code(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")


def _forget_other_code(work: Path) -> None:
    """Start afresh when the report's own code, or a tool, is another one than last time."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _TOOLS]
    lines = [
        *(f"{path.relative_to(_CODE)} {sha256(path)}" for path in _code(_CODE)),
        *versions,
        platform.python_version(),
    ]
    stamp = work / "made-with"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == "\n".join(lines):
        return
    shutil.rmtree(work, ignore_errors=True)
    with write_whole(stamp) as file:
        file.write("\n".join(lines))


def _write_changed(source: Path, pages: Mapping[str, str]) -> None:
    for path in source.rglob("*"):
        if path.is_file() and path.relative_to(source).as_posix() not in pages:
            path.unlink()
    for name, content in pages.items():
        path = source / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            with write_whole(path) as file:
                file.write(content)


def _run_sphinx(work: Path, families: list[str]) -> None:
    places = {name: work / name for name in ("source", "doctrees", "html")}
    warnings = work / "warnings.txt"
    command = [sys.executable, "-m", "sphinx", "--quiet", "--builder", "html", "--warning-file", str(warnings)]
    command += ["--conf-dir", str(_CODE / "sphinx"), "--doctree-dir", str(places["doctrees"])]
    command += ["--html-define", f"families={','.join(families)}", str(places["source"]), str(places["html"])]
    # A fixed hash seed: the search index is written in the order of a set.
    environment = os.environ | {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False
    )
    if done.returncode:
        shutil.rmtree(work / "doctrees", ignore_errors=True)
        said = done.stdout.strip().splitlines()
        raise TokenariumError(f"the site was not built: {said[-1] if said else 'Sphinx stopped'} (see {warnings})")
    _drop_pages_without_source(places["html"], places["source"])


def _drop_pages_without_source(pages: Path, source: Path) -> None:
    """Sphinx leaves the page of a source that is gone, and the images that only it showed."""
    kept = {path.relative_to(source).with_suffix("").as_posix() for path in source.rglob("*") if path.is_file()}
    for path in pages.rglob("*.html"):
        name = path.relative_to(pages).with_suffix("").as_posix()
        if name not in kept and name != "search":
            path.unlink()
    images = pages / "_images"
    if images.is_dir():
        shown = "".join(path.read_text(encoding="utf-8") for path in pages.rglob("*.html"))
        for path in images.iterdir():
            if path.name not in shown:
                path.unlink()


def _publish(source: str, target: str) -> None:
    """Copy a file of the site without what tells a page built afresh from one built after others.

    That is the checksum behind some links to scripts and styles, and words of the search that no page has any more.
    """
    if source.endswith(".html"):
        page = Path(source).read_text(encoding="utf-8")
        Path(target).write_text(re.sub(r"(\.(?:css|js))\?v=[0-9a-f]+\"", r'\1"', page), encoding="utf-8")
    elif Path(source).name == "searchindex.js":
        start, end = "Search.setIndex(", ")"
        index = json.loads(Path(source).read_text(encoding="utf-8").removeprefix(start).removesuffix(end))
        for kind in ("terms", "titleterms"):
            index[kind] = {word: pages for word, pages in index[kind].items() if pages != []}
        content = json.dumps(index, separators=(",", ":"), sort_keys=True)
        Path(target).write_text(f"{start}{content}{end}", encoding="utf-8")
    else:
        shutil.copy2(source, target)


def _copy_results(root: Path, study: Mapping[str, Any], target: Path) -> None:
    """The files that the numbers and figures of a page come from, for its links."""
    folder = root / "reports" / study["slug"]
    target.mkdir(parents=True)
    for name in ("metrics.json", "evidence.json", "provenance.json"):
        shutil.copy2(folder / name, target)
    shutil.copy2(root / "verdicts" / f"{page_name(study['slug'])}.json", target / "verdict.json")
    (target / "tables").mkdir()
    for table in study["results"]["tables"]:
        shutil.copy2(folder / "tables" / f"{table['name']}.csv", target / "tables")
    (target / "figures").mkdir()
    for name in study["results"]["figures"]:
        shutil.copy2(folder / "figures" / f"{name}.svg", target / "figures")
