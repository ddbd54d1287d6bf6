"""Tables as people read them: one cell holds a number with its interval."""

from __future__ import annotations

import pandas as pd


def with_intervals(frame: pd.DataFrame, digits: int = 4) -> pd.DataFrame:
    """The table with `x`, `x_low` and `x_high` joined to one column of text, "0.021 [0.019, 0.023]".

    Other numbers are rounded to `digits` significant digits; the frame itself is left as it is.
    """
    ends = {name: (f"{name}_low", f"{name}_high") for name in frame.columns}
    joined = {name: both for name, both in ends.items() if set(both) <= set(frame.columns)}
    shown = {}
    for name in frame.columns:
        if name in joined:
            cells = zip(frame[name], *(frame[end] for end in joined[name]), strict=True)
            shown[name] = [f"{x:.{digits}g} [{a:.{digits}g}, {b:.{digits}g}]" if x == x else "" for x, a, b in cells]
        elif not any(name in both for both in joined.values()):
            numeric = pd.api.types.is_float_dtype(frame[name])
            shown[name] = [f"{x:.{digits}g}" if x == x else "" for x in frame[name]] if numeric else list(frame[name])
    return pd.DataFrame(shown)
