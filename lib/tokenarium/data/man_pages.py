"""Linux manual pages, mostly of sections 4, 5 and 7, as plain text, from the Debian package `manpages` (free licences).

A row is a page, its id "ascii.7"; a blank line stands between paragraphs. Requests of the typesetter, tables and
examples are left out.
"""

import gzip
import re
from collections.abc import Mapping
from pathlib import Path

from tokenarium.data import text
from tokenarium.data.sources import Archive, Asset

SHORTEST = 200  # characters; pages below only point elsewhere

_FONTS = {"B", "I", "BR", "RB", "IR", "RI", "BI", "IB", "SM", "SB"}
_HEADINGS = {"SH", "SS"}
_BREAKS = {"PP", "P", "LP", "IP", "TP", "TQ", "sp", "RS", "RE", "HP", *_HEADINGS}
_SKIPPED = {"TS": "TE", "EX": "EE", "nf": "fi"}
_ESCAPES = (
    (re.compile(r'\\".*'), ""),
    (re.compile(r"\\f(?:\[[^]]*\]|\(..|.)"), ""),
    (re.compile(r"\\s[-+]?\d+|\\[&/,|^%:)]|\\c$"), ""),
    (re.compile(r"\\\*?\((?:lq|rq)|\\\*?\[(?:lq|rq)\]"), '"'),
    (re.compile(r"\\\((?:aq|cq|oq)|\\\[(?:aq|cq|oq)\]"), "'"),
    (re.compile(r"\\\((?:em|en)|\\\[(?:em|en)\]"), "-"),
    (re.compile(r"\\\(ha|\\\[ha\]"), "^"),
    (re.compile(r"\\\(ti|\\\[ti\]"), "~"),
    (re.compile(r"\\\(..|\\\[[^]]*\]|\\\*(?:\[[^]]*\]|\(..|.)"), ""),
    (re.compile(r"\\-"), "-"),
    (re.compile(r"\\[ ~0]"), " "),
    (re.compile(r"\\[e\\]"), r"\\"),
)
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"|(\S+)')


def load(root: Path | str, split: str | None = None) -> list[dict[str, str]]:
    """Pages {"id", "text"} in the order of their names, of one split or all; see `text.load`."""
    return text.load(root, DATASET.name, "en", split)


def plain(source: str) -> str:
    """The running text of a page in the man macros, paragraphs separated by a blank line."""
    paragraphs: list[list[str]] = [[]]
    until = None
    for line in source.replace("\\ ", "\\~").splitlines():  # so that no argument ends at an escaped blank
        request = re.match(r"[.']\s*(\w+)?\s*(.*)", line)
        name = request[1] if request else None
        if until:
            until = None if name == until else until
        elif name in _SKIPPED:
            until = _SKIPPED[name]
        elif name in _BREAKS:
            paragraphs.append([_words(request[2])] if name in _HEADINGS else [])
            if name in _HEADINGS:
                paragraphs.append([])
        elif name in _FONTS:
            arguments = [quoted or bare for quoted, bare in _ARGUMENT.findall(request[2])]
            paragraphs[-1].append(_words(("" if len(name) == 2 and name != "SM" else " ").join(arguments)))
        elif request is None:
            paragraphs[-1].append(_words(line))
    joined = (" ".join(" ".join(lines).split()) for lines in paragraphs)
    return "\n\n".join(paragraph for paragraph in joined if paragraph)


def _words(string: str) -> str:
    for pattern, replacement in _ESCAPES:
        string = pattern.sub(replacement, string)
    return string


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    pages = (
        (Path(name).name.removesuffix(".gz"), plain(gzip.decompress(path.read_bytes()).decode("utf-8")))
        for name, path in members.items()
    )
    text.write(output, {"en": ((name, page) for name, page in pages if len(page) >= SHORTEST)})


DATASET = Asset(
    name="man-pages",
    packages=(
        Archive(
            "apt",
            "manpages",
            "6.03-2",
            "61b5017ffb09206f8a10e721c2e1b06763de1cc2637cb86750961bf732db05a9",
            r"usr/share/man/man\d/.*\.gz",
        ),
    ),
    normalise=_normalise,
    files={
        "en.jsonl": "ee3cac4bb6cd2d3c994249b6cb4db4cdc9bdaf050283f958de9b7dc742b554d2",
        text.MANIFEST: "939d4fd7aabefd50cfba158d5508fb78d22aa0b47d851736cc1d1ec999c70410",
    },
)
