"""The surveyed papers: what the suite knows of each before anything is written (catalogue.yaml)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

import yaml

from tokenarium.errors import TokenariumError
from tokenarium.study.parameters import nearest


@dataclass(frozen=True)
class Paper:
    """One surveyed paper.

    name: the paper's own word for its method. arxiv: identifier such as "2405.16148". claims: ids of its claims.
    """

    slug: str
    family: str
    name: str
    title: str
    arxiv: str
    claims: tuple[str, ...]

    @property
    def module(self) -> str:
        """The slug as Python writes it: `token_transforming` for `token-transforming`."""
        return self.slug.replace("-", "_")


@functools.cache
def catalogue() -> Mapping[str, Paper]:
    """All surveyed papers by slug, in the order of their families."""
    text = resources.files("tokenarium.study").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    papers = {}
    for family, entries in yaml.safe_load(text).items():
        for slug, entry in entries.items():
            papers[slug] = Paper(slug, family, **entry | {"claims": tuple(entry["claims"])})
    return MappingProxyType(papers)


def check_family(family: str) -> str:
    """`family` itself; raises TokenariumError with the nearest known one when no surveyed paper is of it."""
    families = list(dict.fromkeys(paper.family for paper in catalogue().values()))
    if family not in families:
        raise TokenariumError(f"no surveyed paper is of the family '{family}'; {nearest(family, families)}")
    return family


def find_paper(slug: str, family: str | None = None) -> Paper:
    """A surveyed paper; with `family`, only if it belongs to it.

    Raises TokenariumError with the nearest known name for an unknown slug or family, and with the right family for a
    paper of another one.
    """
    if family is not None:
        check_family(family)
    if slug not in catalogue():
        hint = nearest(slug, list(catalogue()))
        hint = hint if hint.startswith("did") else "`tokenarium papers` lists all"
        raise TokenariumError(f"no surveyed paper is named '{slug}'; {hint}")
    paper = catalogue()[slug]
    if family not in (None, paper.family):
        raise TokenariumError(f"{slug} is a paper of the family {paper.family}, not of {family}")
    return paper
