"""How far a measured number is from the paper's own figure, where the claims file gives that figure as a number.

A claim of the claims file may say, besides its rule:

    paper_value: {metric: drop_f60, value: 0.5, tolerance: 0.3, better: lower}

The distance never touches the verdict, which rests on the rules alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenarium.errors import TokenariumError

WITHIN = "within the tolerance"
BETTER = "better than the paper"
BEYOND = "beyond the tolerance"


class PaperValue(BaseModel):
    """The paper's own figure for one metric, in the metric's unit, and how close a replication must come to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    value: float = Field(allow_inf_nan=False)
    tolerance: float = Field(ge=0, allow_inf_nan=False)
    better: Literal["higher", "lower"] | None = None


def paper_values(path: Path) -> dict[str, PaperValue]:
    """The claims of a claims file that name a `paper_value`, by claim id. Raises TokenariumError for a wrong one."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = {}
    for claim in content.get("claims", []):
        if "paper_value" in claim:
            try:
                found[claim["id"]] = PaperValue.model_validate(claim["paper_value"])
            except ValidationError as error:
                mistake = error.errors()[0]
                key = ".".join(["paper_value", *map(str, mistake["loc"])])
                raise TokenariumError(f"{path}: claim {claim['id']}: {key}: {mistake['msg']}") from None
    return found


def distances(values: Mapping[str, PaperValue], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Distance of each claim's metric to the paper's figure, by claim id: metric, paper, tolerance, distance and said.

    distance: measured minus the paper's, in the metric's unit. A number on the good side of the paper's figure is said
    to be better than the paper, however far. Raises TokenariumError for a metric that was not recorded.
    """
    found = {}
    for claim, paper in values.items():
        if paper.metric not in metrics:
            raise TokenariumError(f"claim {claim}: paper_value names '{paper.metric}', which was not recorded")
        distance = metrics[paper.metric]["value"] - paper.value
        ahead = distance > 0 if paper.better == "higher" else distance < 0 if paper.better == "lower" else False
        # As in the rules: 0.5 - 0.2 is not 0.3 in floating point.
        close = abs(distance) <= paper.tolerance + 1e-9 * max(abs(paper.value), paper.tolerance)
        found[claim] = {
            "metric": paper.metric,
            "paper": paper.value,
            "tolerance": paper.tolerance,
            "distance": distance,
            "said": BETTER if ahead else WITHIN if close else BEYOND,
        }
    return found
