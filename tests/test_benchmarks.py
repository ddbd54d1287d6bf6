"""The loops that the matching functions are timed against do the same work."""

import importlib
from pathlib import Path

import pytest
import torch


@pytest.fixture
def matching(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # benchmarks are no part of the package
    return importlib.import_module("benchmarks.matching")


@pytest.mark.parametrize("shape", [(1, 12, 2), (2, 21, 4), (3, 22, 5), (2, 65, 16)])
def test_loops_and_batched_functions_give_the_same_result(matching, shape):
    x = matching.example(*shape)
    for contest in matching.CONTESTS:
        assert contest.same(contest.batched(x), contest.loops(x)), contest.name


def test_loops_remove_what_was_asked_for(matching):
    x = matching.example(2, 41, 8)
    merged, size = matching.tome_merge_by_loops(x)
    assert merged.shape == (2, 41 - 4, 8)
    assert torch.equal(size.sum(dim=1), torch.full((2, 1), 41.0, dtype=torch.float64))
    torch.testing.assert_close((merged * size).sum(dim=1), x.sum(dim=1))
    assert torch.equal(merged[:, 0], x[:, 0])
    assert [len(pairs) for pairs in matching.pitome_by_loops(x)] == [4, 4]


def test_a_different_result_is_told_from_the_same(matching):
    x, other = matching.example(1, 41, 8), matching.example(1, 41, 9)[..., 1:]
    for contest in matching.CONTESTS:
        assert not contest.same(contest.batched(x), contest.loops(other)), contest.name


def test_nothing_is_timed_that_is_not_the_same(matching):
    wrong = matching.CONTESTS[1]._replace(loops=lambda x: [set()])
    with pytest.raises(ValueError, match=r"PiToMe match at .+ disagree"):
        matching.timed(wrong, (1, 21, 4))


def test_the_table_has_a_line_for_every_function_at_every_shape(matching, monkeypatch, capsys):
    monkeypatch.setattr(matching, "SHAPES", ((2, 21, 4), (1, 31, 8)))
    matching.main()
    lines = capsys.readouterr().out.splitlines()
    for name in ("ToMe match + merge", "PiToMe match"):
        assert [line.split()[name.count(" ") + 1] for line in lines if line.startswith(name)] == ["2x21x4", "1x31x8"]
