"""Tokenarium: reproducible replications of papers on tokens in machine learning.

In a notebook: `study = tokenarium.open_study("pitome")`; afterwards: `tokenarium.tensors("pitome")`.
"""

from typing import Any

__all__ = ["TensorTaps", "explore", "open_study", "show", "tensors"]


def __getattr__(name: str) -> Any:
    # torch and matplotlib take seconds to import: the command line's light commands do without them.
    if name in __all__:
        from tokenarium import study

        return getattr(study, name)
    raise AttributeError(f"module 'tokenarium' has no attribute '{name}'")
