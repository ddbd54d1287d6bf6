"""What a notebook opens: parameters, device, seeds, and a recorder whose results are written whole."""

from typing import Any

__all__ = ["Study", "open_study", "tensors"]
OUTPUT_VARIABLE = "TOKENARIUM_OUTPUT"  # set by the runner; without it a notebook typed by hand writes to scratch


def __getattr__(name: str) -> Any:
    # pandas and seaborn take a second to import: the command line reads parameters without them.
    if name in __all__:
        from tokenarium.study import study

        return getattr(study, name)
    raise AttributeError(f"module 'tokenarium.study' has no attribute '{name}'")
