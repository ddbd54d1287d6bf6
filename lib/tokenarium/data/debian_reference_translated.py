"""The Debian Reference in eleven languages as paragraphs of running text: a second parallel genre, not aligned.

Source: Osamu Aoki and translators, Debian Reference 2.100 (GPL-2+), Debian packages `debian-reference-*`. The id
"ch02.5#17" is the 17th block of prose of a page, in its section 5; splits are made by section, and "0" is what stands
before the first. Untranslated blocks are left out.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from tokenarium.data import text
from tokenarium.data.debian_reference import prose
from tokenarium.data.sources import Archive, Asset

_SECTION = re.compile(r"\w+\.(\d+)\.")
_FOLDER = "usr/share/debian-reference/"


def load(root: Path | str, language: str = "en", split: str | None = None) -> list[dict[str, str]]:
    """Paragraphs {"id", "text"} in one language, in the order of the book; see `text.load`."""
    return text.load(root, DATASET.name, language, split)


def _blocks(members: Mapping[str, Path], language: str) -> Iterator[tuple[str, str]]:
    for name, path in members.items():
        page, _, suffix = Path(name).name.partition(".")
        if suffix == f"{language}.html" and page != "index":
            for number, (title, block) in enumerate(prose(ElementTree.parse(path).getroot()), start=1):
                section = _SECTION.match(title)
                yield f"{page}.{section[1] if section else 0}#{number}", block


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    english = list(_blocks(members, "en"))
    known = {block for _, block in english}
    others = {
        language: ((name, block) for name, block in _blocks(members, language) if block not in known)
        for language in _DIGESTS
        if language != "en"
    }
    text.write(output, {"en": english, **others})


_DIGESTS = {
    "de": "16f8c595812f4016ce543ecf2ef7383f722f54bcbe0e4d638c2754f64f3f5d7a",
    "en": "562d966b455dd9fefec0624cc8f7df5bd1f9bd809f0f17bbeac88697b46a7ceb",
    "es": "4e722fff808efc79d8f7f2f0323724b119c1d8eaea1571dbdab6d8e6152e5c31",
    "fr": "04cb5dd174209c625e7201e0c0edf1af2031dd2979f7c71aac6ccac7cec4442f",
    "id": "d6c74afe8c8bbdbc6116c3e3c08aede6435057d0c6f0534724abd3101f9889cf",
    "it": "7e7843452e949edada699ddeb8ab6960f166b1f9e162f4a503bf25adb1945586",
    "ja": "a7ae3ba3c8023be3104ae1f12400850230f427121476a2e9e54e0f7ade02dc28",
    "pt": "e4fa594f390846e23ba1957810c2018cc98470eec244f4dc10609e16594d1a21",
    "pt-br": "3b9da3681e77d67d6a4898bdac9e7b67d81b4244db498b965a2ff525d725ce00",
    "zh-cn": "a44dd73bd41f7d2998cc7802c15cbdc64a503019041381270b0469ebcd0e50cb",
    "zh-tw": "3b58960494113a2862221d6e63279ae1e646dd58740e63ce4df15d1529258bb0",
}
_FILES = {
    "de.jsonl": "bb1a0ef6c6385d1bd7d45a8a4f2fef4ab5e1646a810a041b1cd2be38b6c80e21",
    "en.jsonl": "44c236998daa48b325f6fce2f240d807294aa7f08030784d5992147cce45479e",
    "es.jsonl": "d75c1ccf5f02916e38875423b4571f8b93cd4edf51b8202bd99fbd2c87c0267c",
    "fr.jsonl": "424df79ca3f1cab94437fafda54bfcdb0d77b547889b4f4edc2d8d7f3a0c8c1e",
    "id.jsonl": "10ef20485b17d9952e69ae41e693ed0e950b0d6107df12cca83949b39e1b1f26",
    "it.jsonl": "cc0971566b8c6cd26e9fa27ae3a7b45ccdadbb6d22cbfc125bd3ad10accc0f29",
    "ja.jsonl": "46ba435bedf1876c69c2319bf9d08796f1c6e902710c93045f78806065c07502",
    "pt-br.jsonl": "f9b6909b10d79afbce416b7480682c5ca8396307f01a1ffade51bddff16b0b4b",
    "pt.jsonl": "ae684b175d60002f2b4d388ff887f41ff22665c1d32bba7167b3e6343ca18a99",
    "zh-cn.jsonl": "2da4b50bbb113fba1babee67f536e4c527f83364cb85ed8c0d0484819cb34fb5",
    "zh-tw.jsonl": "ecd2c5143285737797c6f4fa9db6be6e3d9599963606a6d1586fa140862c460c",
    text.MANIFEST: "e78861702c6660ca33ddc6fb0e1e60a113dcc8ca422acd2653af26c33d0cb2b0",
}

DATASET = Asset(
    name="debian-reference-translated",
    packages=tuple(
        Archive("apt", f"debian-reference-{language}", "2.100", digest, rf"{_FOLDER}\w+\.[\w-]+\.html")
        for language, digest in _DIGESTS.items()
    ),
    normalise=_normalise,
    files=_FILES,
)
