"""Formulas of the site as MathML, made when it is built: a page needs no script and no fonts from elsewhere."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point: the html_math_renderer `mathml`."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def mathml(latex: str, block: bool) -> str:
    """One formula as a <math> element; as its LaTeX source where docutils cannot read it."""
    source = re.sub(r"\\(?:label|nonumber|notag)\b(?:\{[^}]*\})?", "", latex).strip()
    try:
        return latex2mathml.tex2mathml(source, as_block=block)
    except MathError:
        tag = "pre" if block else "code"
        return f'<{tag} class="latex">{html.escape(latex)}</{tag}>'


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(mathml(node.astext(), block=True) + "</div>\n")
    raise nodes.SkipNode
