import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tokenarium.methods.vlm.harness import Method
from tokenarium.methods.vlm.harness.cells import cell_name, keep_cells
from tokenarium.methods.vlm.results import Cells, stratified_counts
from tokenarium.study.experiments import Experiment, Results
from tokenarium.study.parameters import Parameters

FAMILIES = ["attribute", "count", "glyph", "attribute", "count", "attribute", "glyph", "count"]
NUM_PATCHES = 6


def rng(seed=0):
    return np.random.default_rng(seed)


def write(folder, cells, seed=0, families=FAMILIES):
    """One experiment's results: cell name -> accuracy wanted, or ready arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = rng(seed)
    codes = np.zeros((len(families), 12), dtype=np.uint8)
    for row, name in zip(codes, families, strict=True):
        row[: len(name)] = np.frombuffer(name.encode(), dtype=np.uint8)
    relevant = np.zeros((len(families), NUM_PATCHES), dtype=bool)
    relevant[1:, :2] = True
    save_file(
        {"family": codes, "image": np.arange(len(families)), "relevant": relevant}, folder / "questions.safetensors"
    )
    for name, share in cells.items():
        correct = draw.random(len(families)) < share
        kept = np.zeros((len(families), NUM_PATCHES), dtype=bool)
        kept[:, 1:3] = True
        arrays = {
            "correct": correct,
            "log_probability": -draw.random(len(families)).astype(np.float32),
            "visual": np.full((len(families), 4), [6, 6, 2, 2], dtype=np.uint16),
            "kept": kept,
            "gflops": np.ones(len(families), dtype=np.float32),
        }
        save_file(arrays, folder / f"{name}.safetensors")
    return Results(folder.name, folder, {})


@pytest.fixture
def cells(tmp_path):
    shares = {"full": 1.1, "blind": -1, "some_b4": 0.6, "random-0_b4": 0.3, "random-1_b4": 0.4, "random-0_b8": 0.5}
    stages = {seed: [write(tmp_path / f"seed{seed}", shares, seed)] for seed in (0, 1, 2)}
    return Cells(stages, resamples=500)


def test_resamples_hold_as_many_questions_of_each_family_as_there_are():
    counts = stratified_counts(tuple(FAMILIES), 200)
    assert counts.shape == (200, len(FAMILIES))
    names = np.array(FAMILIES)
    for family in set(FAMILIES):
        assert (counts[:, names == family].sum(axis=1) == (names == family).sum()).all()
    assert len(np.unique(counts, axis=0)) > 100
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.3)


def test_the_mean_is_that_of_the_questions_and_lies_in_its_interval(cells):
    interval, seeds = cells.mean("some_b4")
    samples = cells.samples("correct", "some_b4")
    assert interval.value == pytest.approx(100 * np.mean(list(samples.values())))
    assert interval.low <= interval.value <= interval.high
    assert {seed: one.value for seed, one in seeds.items()} == pytest.approx(
        {seed: 100 * one.mean() for seed, one in samples.items()}
    )


def test_an_interval_agrees_with_a_slow_stratified_bootstrap(tmp_path):
    families = [name for name in ("a", "b") for _ in range(60)]
    stage = write(tmp_path / "stage", {"one_b4": 0.8, "two_b4": 0.5}, 3, families)
    cells = Cells({0: [stage]}, resamples=4000)
    interval, _ = cells.difference("one_b4", "two_b4")
    one, two = (cells.samples("correct", name)[0] for name in ("one_b4", "two_b4"))
    draw, found = rng(9), []
    for _ in range(4000):
        rows = np.concatenate([draw.integers(60, size=60), 60 + draw.integers(60, size=60)])
        found.append(100 * (one[rows] - two[rows]).mean())
    assert (interval.low, interval.high) == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=1.0)
    assert interval.value == pytest.approx(100 * (one - two).mean())


def test_a_cell_differs_from_itself_by_nothing(cells):
    interval, seeds = cells.difference("some_b4", "some_b4")
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)
    assert all(one.low == one.high == 0 for one in seeds.values())


def test_full_and_blind_are_the_ends_of_the_scale(cells):
    assert cells.retention("full")[0].value == cells.relative("full")[0].value == 1
    assert cells.retention("blind")[0].value == 0
    accuracy = cells.mean("some_b4")[0].value / 100
    assert cells.retention("some_b4")[0].value == pytest.approx(accuracy)  # full is always right here, blind never


def test_draws_of_one_method_are_read_as_their_mean(cells):
    both = [cells.samples("correct", f"random-{draw}_b4")[0] for draw in (0, 1)]
    np.testing.assert_allclose(cells.samples("correct", "random_b4")[0], (both[0] + both[1]) / 2)
    assert "random_b4" in cells
    assert "random_b16" not in cells
    with pytest.raises(KeyError, match="random_b16"):
        cells.mean("random_b16")


def test_families_and_masks_choose_the_questions_that_count(cells):
    names = np.array(FAMILIES)
    samples = np.mean(list(cells.samples("correct", "some_b4").values()), axis=0)
    assert cells.mean("some_b4", families=["glyph"])[0].value == pytest.approx(100 * samples[names == "glyph"].mean())
    where = np.arange(len(names)) < 3
    assert cells.mean("some_b4", where=where)[0].value == pytest.approx(100 * samples[:3].mean())
    with pytest.raises(ValueError, match="no question"):
        cells.mean("some_b4", families=["none"])


def test_recall_leaves_out_questions_without_relevant_patches(cells):
    recall = cells.samples("recall", "some_b4")[0]
    assert np.isnan(recall[0])
    assert (recall[1:] == 0.5).all()
    assert cells.mean("some_b4", "recall")[0].value == 50
    assert cells.mean("some_b4", "vbar", scale=1)[0].value == 4
    assert cells.mean("some_b4", "tokens", scale=1)[0].value == 2


def test_a_contrast_is_a_difference_of_differences(cells):
    terms = {"full": 1, "some_b4": -1, "random_b4": -1, "blind": 1}
    parts = {name: cells.mean(name)[0].value for name in terms}
    assert cells.contrast(terms)[0].value == pytest.approx(sum(terms[name] * parts[name] for name in terms))
    assert cells.probability({"full": 1, "blind": -1})[0].value == 1
    assert cells.probability({"blind": 1, "full": -1})[0].value == 0


def test_the_table_has_a_row_for_each_cell_and_a_column_for_each_family(cells):
    frame = cells.frame({"full": ("full", None), "some_b4": ("some", 4)})
    assert list(frame.method) == ["full", "some"]
    assert {"vbar", "gflops", "accuracy", "NR", "attribute", "count", "glyph", "recall"} <= set(frame.columns)
    names = np.array(FAMILIES)
    by_family = sum(frame[name][1] * (names == name).mean() for name in set(FAMILIES))
    assert by_family == pytest.approx(frame.accuracy[1])


def test_seeds_that_were_asked_other_questions_are_refused(tmp_path):
    one = write(tmp_path / "one", {"full": 1})
    other = write(tmp_path / "other", {"full": 1}, families=FAMILIES[::-1])
    with pytest.raises(ValueError, match="same questions"):
        Cells({0: [one], 1: [other]}, 10)
    with pytest.raises(ValueError, match="was it run"):
        Cells({0: []}, 10)


def experiment(folder, seed=0, model="tiny"):
    values = {"model": model, "data": "scenes", "device": "cpu", "questions": 10, "batch_size": 4, "seed": seed}
    folder.mkdir(exist_ok=True)
    return Experiment(None, "test", "smoke", Parameters(values, "test"), [0], folder)


def test_cells_are_made_once_and_read_back(tmp_path):
    made = []

    class Counted(Method):
        def select(self, image):
            made.append(image.index)
            return super().select(image)[:7]

    for _ in range(2):
        keep_cells(experiment(tmp_path / "a"), {"full": Method(), cell_name("counted", 7): Counted()})
    assert made == list(range(10))
    (tmp_path / "a" / "experiment.json").write_text(json.dumps({}))
    cells = Cells({0: [Results("a", tmp_path / "a", {})]}, 100)
    assert cells.families.tolist() == ["attribute", "existence", "count", "relation", "glyph"] * 2
    assert cells.kept("counted_b7")[0].sum(axis=1).tolist() == [7] * 10
    assert cells.mean("counted_b7", "tokens", scale=1)[0].value == 7


def test_a_checkpoint_of_the_hub_has_one_seed(tmp_path):
    keep_cells(experiment(tmp_path / "b", seed=1, model="some/checkpoint"), {"full": Method()})
    assert not list((tmp_path / "b").iterdir())
