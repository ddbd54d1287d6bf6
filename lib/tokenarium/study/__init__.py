"""What a notebook opens: parameters, device, seeds, and a recorder whose results are written whole."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Study": "study",
    "open_study": "study",
    "tensors": "dataset",
    "show": "dataset",
    "explore": "explorer",
    "TensorTaps": "taps",
}
__all__ = ["Study", "TensorTaps", "explore", "open_study", "show", "tensors"]
OUTPUT_VARIABLE = "TOKENARIUM_OUTPUT"  # set by the runner; without it a notebook typed by hand writes to scratch


def __getattr__(name: str) -> Any:
    # pandas and seaborn take a second to import: the command line reads parameters without them.
    if name in _HOMES:
        return getattr(import_module(f"tokenarium.study.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tokenarium.study' has no attribute '{name}'")
