"""The tensor explorer: `tokenarium.explore("pitome")` in JupyterLab, the same view read-only in the report."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tokenarium.errors import TokenariumError
from tokenarium.files import write_whole
from tokenarium.study.dataset import open_tensors, tensors
from tokenarium.study.explorer.catalogue import PAGE_BYTES, check_state, describe, embed

__all__ = ["explore", "explorer_html", "export_html", "write_page"]
_HERE = Path(__file__).parent
Tensors = str | xr.Dataset | xr.DataArray | Mapping[str, "str | xr.Dataset | xr.DataArray"]


def explore(source: Tensors, pictures: np.ndarray | None = None, root: Path | None = None, **state: Any) -> Any:
    """A widget to look at tensors: pick one, give its dimensions roles, read values, compare.

    source: the slug of a finished study, a Dataset, a DataArray, or a mapping of names to these, whose tensors can be
    subtracted from one another: `explore({"now": "pitome", "before": tensors("pitome", revision="HEAD~3")})`.
    pictures: (images, height, width) uint8, what the dimension `image` numbers. state: what is shown first, such as
    tensor="energy" or roles={"image": "facets"}. Afterwards `.state` is what is shown, and can be set, `.shown` the
    part of the tensor that it is made of.
    Raises TokenariumError for tensors that are not there and names that do not exist.
    """
    from tokenarium.study.explorer.widget import Explorer

    return Explorer(_runs(source, root), pictures, state)


def explorer_html(
    source: Tensors,
    pictures: np.ndarray | None = None,
    root: Path | None = None,
    page_bytes: int = PAGE_BYTES,
    name: str = "tensors",
    **state: Any,
) -> str:
    """The same view as a fragment of HTML that has its data, style and code inside itself, for any page.

    source, pictures, state: as for `explore`. page_bytes: of tensors, before compression; what does not fit, and the
    digits beyond float16, are left out and the page says so. name: an id that no other element of the page has.
    """
    runs = _runs(source, root)
    catalog = embed(runs, describe(runs, pictures), page_bytes)
    payload = {"catalog": catalog, "state": check_state(catalog, state)}
    data = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # nothing in it can end the script
    identity = html.escape(name, quote=True)
    css, script = (_HERE.joinpath(f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        f"<style>\n{css}</style>\n"
        f'<div data-tokenarium="{identity}-data"><noscript>The explorer needs JavaScript.</noscript></div>\n'
        f'<script type="application/json" id="{identity}-data">{data}</script>\n'
        f'<script type="module">\n{script}\nstart();\n</script>\n'
    )


def export_html(source: Tensors, path: Path | str, title: str = "Tensors", **options: Any) -> Path:
    """Write the view as one page that works from file:// and asks for nothing else; options as `explorer_html`."""
    fragment = explorer_html(source, **options)
    path = Path(path)
    with write_whole(path) as file:
        file.write(_PAGE.format(title=html.escape(title), table="", fragment=fragment))
    return path


def write_page(slug_folder: Path, target: Path) -> None:
    """Write the page with the tensors of one report: slug_folder is reports/<slug>, target an .html file.

    Raises TokenariumError when the tensors are missing or damaged.
    """
    slug = Path(slug_folder).name
    dataset = open_tensors(Path(slug_folder) / "tensors", f"run `dvc checkout {slug_folder}/tensors`, or `dvc pull`")
    fragment = explorer_html({slug: dataset})
    with write_whole(target) as file:
        file.write(_PAGE.format(title=f"Tensors of {html.escape(slug)}", table=_table(dataset), fragment=fragment))


# The page may load nothing, so that a mistake shows at once and not on a machine without a network.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 72rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif;
       color: light-dark(#1a1a1a, #ececec); background: light-dark(#ffffff, #1c1c1e); }}
.names {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }}
th, td {{ text-align: left; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #76767680; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{fragment}{table}</main>
</body>
</html>
"""


def _table(dataset: xr.Dataset) -> str:
    """The names, dimensions and sentences of all tensors, for reading without JavaScript too."""
    rows = []
    for name, array in dataset.data_vars.items():
        sizes = ", ".join(f"{str(dim).removeprefix(f'{name}.')}: {size}" for dim, size in array.sizes.items())
        texts = (str(name), sizes, array.attrs.get("units", ""), array.attrs.get("long_name", ""))
        rows.append("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in texts) + "</tr>")
    head = "".join(f'<th scope="col">{text}</th>' for text in ("tensor", "dimensions", "unit", "what it is"))
    body = "\n".join(rows)
    return (
        f'<h2>All tensors</h2>\n<div class="names" tabindex="0" role="region" aria-label="All tensors">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n"
    )


def _runs(source: Tensors, root: Path | None) -> dict[str, xr.Dataset]:
    if isinstance(source, str):
        return {source: tensors(source, root)}
    if isinstance(source, xr.Dataset):
        return {"tensors": source}
    if isinstance(source, xr.DataArray):
        return {"tensors": source.to_dataset(name=source.name or "values")}
    if isinstance(source, Mapping) and source:
        return {str(name): next(iter(_runs(each, root).values())) for name, each in source.items()}
    raise TokenariumError(
        f"nothing to explore in {type(source).__name__}: give a slug, a Dataset, a DataArray or a mapping"
    )
