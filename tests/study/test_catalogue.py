"""The catalogue of surveyed papers: complete, without doubles, and forgiving about names."""

import re
from collections import Counter

import pytest

from tokenarium.errors import TokenariumError
from tokenarium.study.catalogue import catalogue, check_family, find_paper

SIZES = {
    "vision": 12,
    "vlm": 12,
    "video": 5,
    "context": 7,
    "tokenizers": 12,
    "language": 13,
    "imagetok": 13,
    "imagegen": 7,
    "merging": 2,
    "inference": 10,
}


def test_all_surveyed_papers_are_there():
    assert Counter(paper.family for paper in catalogue().values()) == SIZES
    assert len(catalogue()) == 93


def test_every_paper_has_a_name_a_title_an_identifier_and_claims():
    for slug, paper in catalogue().items():
        assert paper.slug == slug
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug)
        assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv), slug
        assert paper.name.strip() == paper.name != ""
        assert len(paper.title) > 15
        assert paper.claims
        assert all(re.fullmatch(r"C\d[a-z]?", claim) for claim in paper.claims), slug
        assert len(set(paper.claims)) == len(paper.claims), slug


@pytest.mark.parametrize("of", [lambda p: p.arxiv, lambda p: p.title, lambda p: p.module])
def test_no_two_papers_are_the_same(of):
    assert len({of(paper) for paper in catalogue().values()}) == len(catalogue())


def test_a_module_is_a_python_name():
    assert find_paper("short-m-at-k").module == "short_m_at_k"
    assert all(paper.module.isidentifier() for paper in catalogue().values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hiprun",), "no surveyed paper is named 'hiprun'; did you mean hiprune"),
        (("hiprun", "vision"), "no surveyed paper is named 'hiprun'; did you mean hiprune"),
        (("qqqqqq",), "no surveyed paper is named 'qqqqqq'; `tokenarium papers` lists all"),
        (("hiprune", "vision"), "hiprune is a paper of the family vlm, not of vision"),
        (("hiprune", "visoin"), "no surveyed paper is of the family 'visoin'; did you mean vision"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(arguments, said):
    with pytest.raises(TokenariumError) as error:
        find_paper(*arguments)
    assert str(error.value).startswith(said)
    assert len(str(error.value)) < 120


def test_a_family_is_known_by_its_papers():
    assert check_family("imagetok") == "imagetok"
    with pytest.raises(TokenariumError, match="did you mean imagetok"):
        check_family("imagetoks")
