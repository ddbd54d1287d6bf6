"""What is timed against something else does the same work: loops and functions, models with and without taps."""

import importlib
import logging
from pathlib import Path

import pytest
import torch


@pytest.fixture
def matching(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # benchmarks are no part of the package
    return importlib.import_module("benchmarks.matching")


@pytest.fixture
def parallel_repro(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return importlib.import_module("benchmarks.parallel_repro")


@pytest.fixture
def taps(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return importlib.import_module("benchmarks.taps")


@pytest.fixture
def bpe_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return importlib.import_module("benchmarks.bpe")


@pytest.fixture
def visual_tokens(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return importlib.import_module("benchmarks.visual_tokens")


def test_selections_of_visual_tokens_and_their_loops_choose_the_same(visual_tokens, capsys):
    sizes = visual_tokens.Sizes(images=2, width=8, heads=3, tower_dim=12, dim=128, inner=16, keep=20)
    visual_tokens.main(sizes)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["HiPrune", "FastV", "VisionZip"]
    wrong = visual_tokens.CONTESTS[0]._replace(loops=visual_tokens.CONTESTS[0].quick)
    other = wrong._replace(quick=lambda one, sizes: ~wrong.loops(one, sizes))
    with pytest.raises(ValueError, match="disagree"):
        visual_tokens.timed(other, sizes, lambda: None)


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


@pytest.mark.parametrize("workers", [1, 8, 64])
def test_a_simulated_suite_takes_hardly_longer_than_its_longest_chain_or_its_work(parallel_repro, workers):
    assert 1 - 1e-9 <= parallel_repro.excess(workers) < 1.25


def test_the_bound_of_a_suite_is_its_work_on_one_worker_and_its_longest_chain_on_many(parallel_repro):
    jobs = parallel_repro.suite(papers=5)
    seconds, upstream = {job.name: job.seconds for job in jobs}, {job.name: job.upstream for job in jobs}

    def chain(name):
        return seconds[name] + max(map(chain, upstream[name]), default=0)

    assert parallel_repro.bound(jobs, 1) == pytest.approx(sum(seconds.values()))
    assert parallel_repro.bound(jobs, 10**6) == pytest.approx(chain("report"))


def test_the_projects_that_are_timed_do_their_work_with_dvc_and_in_parallel(parallel_repro, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    tree = parallel_repro.project(tmp_path / "tree", "true", 2)
    parallel_repro.called(tree, "dvc", "repro")
    assert [(tree / f"out{index}").read_text() for index in range(2)] == ["0\n", "1\n"]


def test_taps_are_timed_on_all_twelve_layers(taps):
    model, pixels = taps.model_and_pixels(batch=2)
    sizes = {}
    for name, (attach, examples) in taps.CASES.items():
        cost, opened = taps.slowdown(model, pixels, attach, examples, repeats=2)
        assert cost.low > 0
        sizes[name] = opened.size
    floats = 12 * 2 * 197 * 64
    assert list(sizes.values()) == [0, 4 * floats, 4 * floats, 4 * 12 * 2 * 2 * 197 * 197]


def test_taps_that_change_the_logits_are_not_timed(taps):
    model, pixels = taps.model_and_pixels(batch=1)

    def spoil(opened):
        opened._openers.append(lambda stack: model.classifier.bias.data.add_(1))

    with pytest.raises(ValueError, match="taps change the logits"):
        taps.slowdown(model, pixels, spoil, None, repeats=2)


def test_rounds_alternate_between_the_two_kernels(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    warm_kernels = importlib.import_module("benchmarks.warm_kernels")
    ran = []
    monkeypatch.setattr(warm_kernels, "seconds", lambda notebook, warm: (ran.append(warm), 1.5 if warm else 9.0)[1])
    first, times = warm_kernels.measure(tmp_path, rounds=3)
    assert first == 1.5
    assert ran == [True, *[False, True] * 3]
    assert times.tolist() == [[9.0, 1.5]] * 3
    assert warm_kernels.median(times[:, 0] / times[:, 1]).value == 6.0


def test_a_kernel_that_is_not_warm_stops_the_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    warm_kernels = importlib.import_module("benchmarks.warm_kernels")
    logger = logging.Logger("a logger of its own")
    logger.addHandler(warm_kernels.NoColdKernel())
    with pytest.raises(RuntimeError, match="no fork server"):
        logger.warning("an ordinary kernel: %s", "no fork server")


def test_loops_and_replay_count_the_same_pairs(bpe_benchmark):
    words = {b"aaaa": 2, b"abab": 3, b"banana": 1, b"a": 9}
    merges = [(b"a", b"a"), (b"a", b"b"), (b"ab", b"ab"), (b"n", b"a"), (b"aa", b"aa"), (b"x", b"y")]
    assert bpe_benchmark.same_counts(merges, words)
    assert bpe_benchmark.counts_by_loops(merges, words)[1] == {
        (b"aa", b"aa"): 2,
        (b"a", b"b"): 6,
        (b"b", b"a"): 4,
        (b"a", b"n"): 2,
        (b"n", b"a"): 2,
    }


@pytest.fixture
def omp(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return importlib.import_module("benchmarks.omp")


def test_omp_in_batches_chooses_what_scikit_learn_chooses(omp):
    targets, points = (rows.double() for rows in omp.example(4, 60, 24))
    assert omp.check(targets, points, 8) == 4


def test_omp_that_leaves_another_residual_is_not_timed(omp, monkeypatch):
    monkeypatch.setattr(
        omp, "by_scikit_learn", lambda target, points, k: (torch.arange(k).numpy(), torch.zeros(k).numpy())
    )
    with pytest.raises(ValueError, match="the two leave"):
        omp.timed(4, 2, anchors=40, dim=16, k=4)


def test_omp_is_timed_for_as_many_tokens_as_asked(omp, monkeypatch, capsys):
    monkeypatch.setattr(omp, "ANCHORS", 50)
    monkeypatch.setattr(
        omp, "timed", lambda tokens, sample: (tokens / 1000, omp.Interval(0.05, 0.04, 0.06, "made up"), sample)
    )
    omp.main(["--tokens", "100", "--sample", "3"])
    told = capsys.readouterr().out
    assert "100 tokens in one call" in told
    assert "20 s for 20,000" in told
    assert "loop / batched: 50.0 [40.0, 60.0]" in told


def test_a_part_of_the_cache_takes_a_part_of_its_memory(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    kv_cache = importlib.import_module("benchmarks.kv_cache")
    monkeypatch.setattr(kv_cache.make_model, "__defaults__", (24, 3))
    found = kv_cache.timed(layers=1, context=80, steps=20, share=0.25)
    assert found.pop("again").memory == 1
    assert set(found) == set(kv_cache.POLICIES)
    for name, contest in found.items():
        kept = 20 + (20 if name == "SnapKV" else 1)  # a slot stands open for the coming token
        assert contest.memory == pytest.approx(kept / 100), name
    kv_cache.main(["--layers", "1", "--context", "40", "--steps", "4"])
    assert len(capsys.readouterr().out.splitlines()) >= len(kv_cache.POLICIES) + 2
