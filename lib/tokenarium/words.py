"""Names that every part of the suite shares, and the hint for one that is misspelt."""

import difflib
from collections.abc import Iterable

PROFILES = ("smoke", "cpu", "gpu")
SHOWN = 12


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known ones, or the first dozen of all when nothing is near."""
    names = sorted(str(each) for each in known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = ", ..." if len(names) > SHOWN else ""
    return f"known: {', '.join(names[:SHOWN]) or 'none'}{more}"
