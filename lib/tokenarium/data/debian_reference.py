"""The English Debian Reference as prose paragraphs: a real technical text with many near neighbours.

Source: Osamu Aoki, Debian Reference 2.100 (GPL-2+), Debian package `debian-reference-en`.

What counts as a paragraph here: the running text of one numbered section ("2.1", with its subsections) is
read in order (paragraphs, list items, notes; no tables, code listings, headings or navigation) and split
into sentences; a paragraph is complete when it has at least 92 words and punctuation marks and the next
sentence is worth starting with, having at least 6 words. The last of a section may be shorter. The book's
own paragraphs are too short for retrieval (50 of 2,350 have 96 of MiniLM's WordPieces).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path
from xml.etree import ElementTree

from tokenarium.data.sources import Asset, Package
from tokenarium.errors import TokenariumError
from tokenarium.files import write_whole

LEAST_WORDS = 92
LEAST_START = 6

_PAGES = {
    "pr01": "1f79b1087d60dec1ecaa2923789559f64f3ee9bd7a5e682c16f7cb5fc28156d0",
    "ch01": "f3b4670e5612a20772c58a6ab3ce98e35d30751e3afa742ed18a75ac96e405ed",
    "ch02": "5d2a484e51e988116576f9518630593ca65b48d9e9d9ede30af62ab4bc05f6ee",
    "ch03": "d51b80e2a3050a2d740ad1012631b7fa8035e5b87da7f1e22b4f76b0ff173951",
    "ch04": "fee37e8caeeb3df571d6a469d56c7d493ca1e63ebb014adc2506f01ded356c74",
    "ch05": "6a2ad647dc70330ee872256b21eb93870a838946a6c4867771c98a5d42646216",
    "ch06": "6523ca29b01d2af192b607672c5ee35112d3a50a5cd8dbc7ec01468e0f1cad84",
    "ch07": "a0781d4a31fb5b3a20f0df2dd98fd3f26bb89269a7e54147d1b3b16a92be2550",
    "ch08": "c0ee6f9782d9e559d349a445341cb8a612a2e07f63e0987bf18c6748ef1cfe40",
    "ch09": "2c7deef1a086b1b98fa0becb65c4b96b23d1faa0e366705ee0219a25338d0b91",
    "ch10": "151282ae22e01759169f42c1eb31b36782ced9e094befb191b275ba25991af12",
    "ch11": "b6049e65595f1b57cdd6cf9c21986360d5dad2604c729b13ae5c9a23dacdf508",
    "ch12": "0dc16a9377d90787807460fa610942621dd32df43d1d28204ac18da2d08a1483",
    "apa": "74bb41522231caecc5d71da0e016885fb5ee63fc70ada427c71ec3e018516dd6",
}
_XHTML = "{http://www.w3.org/1999/xhtml}"
_NO_PROSE = {"table", "pre", "head"}
_NO_PROSE_CLASSES = {"toc", "navheader", "navfooter", "title"}
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
_SENTENCE_END = re.compile(
    r"""(?: (?<=[.!?]) | (?<=[.!?]["”)]) )   # after a full stop, or one inside quotes or brackets
        (?<!e\.g\.) (?<!i\.e\.) (?<!vs\.)    # but not after these abbreviations
        \s+ (?=["“(]?[A-Z0-9] | ["“][/~$])  # a capital, or a quoted path or variable, begins the next""",
    re.VERBOSE,
)


def load(root: Path | str) -> list[dict[str, str]]:
    """The paragraphs below the repository root, in the order of the book.

    Each is {"id": "ch02-017", "section": title of the section it starts in, "text": str}; in a text a newline
    stands between blocks of the book (list items, say) and one space between words.
    Raises TokenariumError if the data set was not fetched.
    """
    path = Path(root) / "data" / DATASET.name / "paragraphs.jsonl"
    if not path.is_file():
        raise TokenariumError(f"{path} is missing: run `tokenarium data {DATASET.name}`")
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def split_first_sentence(text: str) -> tuple[str, str]:
    """A paragraph's first sentence and the rest of it (empty if there is only one)."""
    block, _, others = text.partition("\n")
    first, *rest = sentences(block)
    return first, "\n".join(part for part in (" ".join(rest), others) if part)


def sentences(block: str) -> list[str]:
    """The sentences of one block of running text, never empty for a block that is not."""
    return _SENTENCE_END.split(block)


def paragraphs(
    blocks: Iterable[tuple[str, str]], least_words: int = LEAST_WORDS, least_start: int = LEAST_START
) -> Iterator[tuple[str, str]]:
    """Join the (title, text) blocks of one section, by sentences, to paragraphs of at least `least_words`.

    Words and punctuation marks count alike for `least_words`, which follows the number of WordPieces more
    closely than words do; `least_start` counts words between spaces. Gives (title of the first block, text
    with a newline where a block ended); only the last can have fewer.
    """
    start, text, count = "", "", 0
    for title, block in blocks:
        between = "\n"
        for sentence in sentences(block):
            if count >= least_words and len(sentence.split()) >= least_start:
                yield start, text
                text, count = "", 0
            start, text = (start, f"{text}{between}{sentence}") if text else (title, sentence)
            between = " "
            count += len(_WORD_OR_MARK.findall(sentence))
    if text:
        yield start, text


def prose(page: ElementTree.Element) -> Iterator[tuple[str, str]]:
    """The (section title, text) of each block of running text in a page, whitespace normalised."""
    title = ""

    def walk(element: ElementTree.Element) -> Iterator[tuple[str, str]]:
        nonlocal title
        tag = element.tag.removeprefix(_XHTML)
        classes = set(element.get("class", "").split())
        if "titlepage" in classes:
            title = _text(element)
        elif tag in _NO_PROSE or classes & _NO_PROSE_CLASSES:
            return
        elif tag == "p":
            if text := _text(element):
                yield title, text
        else:
            for child in element:
                yield from walk(child)

    return walk(page)


def _text(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def _numbered(title: str) -> str:
    """The section "2.1." of a subsection "2.1.3. ..."; other titles (chapters, the preface) as they are."""
    number = re.match(r"\w+\.\d+\.", title)
    return number.group() if number else title


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    with write_whole(output / "paragraphs.jsonl") as file:
        for page in _PAGES:
            blocks = prose(ElementTree.parse(members[_member(page)]).getroot())
            sections = groupby(blocks, key=lambda block: _numbered(block[0]))
            made = chain.from_iterable(paragraphs(section) for _, section in sections)
            for number, (title, text) in enumerate(made, start=1):
                line = {"id": f"{page}-{number:03}", "section": title, "text": text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _member(page: str) -> str:
    return f"usr/share/debian-reference/{page}.en.html"


DATASET = Asset(
    name="debian-reference",
    packages=(
        Package(
            "apt",
            "debian-reference-en",
            "2.100",
            {_member(page): digest for page, digest in _PAGES.items()},
        ),
    ),
    normalise=_normalise,
    files={"paragraphs.jsonl": "74c29c88c8b1c7f32e66043663c81731bd2180447c737953cc6bccf91b9539a0"},
)
