"""The King James Bible: 31,102 verses of English from 1611, in the public domain; Debian package `bible-kjv-text`.

A row is a verse, its id "<book><chapter>#<verse>" ("Ge1#3"); splits are made by chapter.
"""

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenarium.data import text
from tokenarium.data.sources import Asset, Package
from tokenarium.errors import TokenariumError

_DATA = "usr/lib/bible.data"
_COUNT, _TABLE = 68, 0x5C  # windows, and where the table of their offsets begins (big-endian, 4 bytes each)
_COMPRESS = b"\x1f\x9d\x90"  # the header of compress(1) with codes of 16 bits, which the windows lack
_VERSE = re.compile(r"([1-3]?[A-Za-z]+\d+):(\d+) (.*)")


def load(root: Path | str, split: str | None = None) -> list[dict[str, str]]:
    """Verses {"id", "text"} in the order of the book, of one split or all; see `text.load`."""
    return text.load(root, DATASET.name, "en", split)


def verses(plain: str) -> Iterator[tuple[str, str]]:
    """(id, text) of every line "Ge1:1 In the beginning"; other lines are passed over."""
    for line in plain.splitlines():
        if found := _VERSE.fullmatch(line.strip()):
            yield f"{found[1]}#{found[2]}", found[3].strip()


def _decompress(data: bytes) -> str:
    """The text of a file whose windows are each packed by compress(1)."""
    gzip = shutil.which("gzip")
    if gzip is None:
        raise TokenariumError("unpacking the King James Bible needs gzip (on Debian: apt-get install gzip)")
    starts = struct.unpack(f">{_COUNT + 1}I", data[_TABLE : _TABLE + 4 * (_COUNT + 1)])
    ends = (*starts[1:], len(data))
    windows = (data[start:end] for start, end in zip(starts, ends, strict=True))
    packed = (
        subprocess.run([gzip, "-dc"], input=_COMPRESS + window, capture_output=True, check=True).stdout
        for window in windows
        if window
    )
    return b"".join(packed).decode("ascii")


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    text.write(output, {"en": verses(_decompress(members[_DATA].read_bytes()))})


DATASET = Asset(
    name="king-james-bible",
    packages=(
        Package(
            "apt", "bible-kjv-text", "4.38", {_DATA: "6c746c2acc8a34bfded980883ff1701a5d68934a1c853ebf88a07b978fe0ae0e"}
        ),
    ),
    normalise=_normalise,
    files={
        "en.jsonl": "a9caec71eacb5c9ead8dba86eec9163dac93b00c1f3f5e7fbc66765695fdc4c8",
        text.MANIFEST: "7c872041bf19bcc84d1848bbeca2ec997ca0ba9c5a91258f90251cc52c731ec8",
    },
)
