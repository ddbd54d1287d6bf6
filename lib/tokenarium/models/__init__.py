"""How each model of the suite is made: one module per recipe, each with `build(root, path, seed, recipe)`."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenarium.errors import TokenariumError

RECIPES = {
    "vit-fmnist": "vit_fmnist",
    "minilm-l6": "minilm",
    "smollm2-135m": "smollm2",
    "gemma3-270m": "gemma3",
    "lm-tiny": "lm_tiny",
    "hypernet-tiny": "hypernet_tiny",
    "clip-scenes": "clip_scenes",
    "llava-scenes": "llava_scenes",
}


def build(root: Path, path: Path, recipe: str, seed: int, parameters: Mapping[str, Any]) -> None:
    """Make the model directory `path` by a named recipe; it appears whole or not at all.

    Raises TokenariumError for an unknown recipe and whatever the recipe itself names as wrong.
    """
    if recipe not in RECIPES:
        raise TokenariumError(f"no recipe '{recipe}'; known: {', '.join(RECIPES)}")
    module = importlib.import_module(f"tokenarium.models.{RECIPES[recipe]}")
    module.build(root, path, seed, parameters)
