"""The arena: results of several papers merged, ranked, and refused when they do not fit together."""

import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tokenarium.errors import TokenariumError
from tokenarium.methods.vision.harness.arena import load_field, metric_key

RESAMPLES, IMAGES, SEEDS = 500, 40, (0, 1, 2)
FULL = np.zeros((IMAGES, 2), dtype=np.float32)
LABELS = np.arange(IMAGES) % 2


def logits(*margins: float, count: int = IMAGES) -> np.ndarray:
    """Two classes whose logits differ by the given margins, repeated over the images."""
    out = np.zeros((count, 2), dtype=np.float32)
    out[:, 0] = np.resize(np.array(margins, dtype=np.float32), count)
    return out


def kl_of(margin: float) -> float:
    """KL from the full model's even odds to odds of e^margin."""
    return math.log((math.exp(margin) + 1) / 2) - margin / 2


def write(folder, slug: str, methods: dict[tuple[str, float], dict[int, np.ndarray]], images: int = IMAGES) -> None:
    """The results of one paper: its methods, the full model and the labels on every seed."""
    tensors = {}
    for seed in SEEDS:
        tensors[f"full|1.0|{seed}"] = FULL[:images]
        tensors[f"labels|1.0|{seed}"] = LABELS[:images]
        for (method, budget), by_seed in methods.items():
            if seed in by_seed:
                tensors[f"{method}|{budget}|{seed}"] = by_seed[seed]
    (folder / slug).mkdir(parents=True)
    save_file(tensors, folder / slug / "results.safetensors")


def on_all_seeds(values: np.ndarray) -> dict[int, np.ndarray]:
    return dict.fromkeys(SEEDS, values)


def test_the_field_holds_the_methods_of_all_papers(tmp_path):
    write(tmp_path, "one", {("ToMe", 0.6): on_all_seeds(logits(1)), ("ToMe", 0.5): on_all_seeds(logits(2))})
    write(tmp_path, "two", {("ToMe", 0.6): on_all_seeds(logits(1)), ("R0", 0.6): on_all_seeds(logits(3))})
    field = load_field(tmp_path, RESAMPLES)
    assert set(field.methods(0.6)) == {"ToMe", "R0"}
    assert field.methods(0.5) == ["ToMe"]
    entries = field.entries().set_index("method")
    assert entries.papers.to_dict() == {"R0": "two", "ToMe": "one, two"}
    assert entries.budgets.to_dict() == {"R0": 1, "ToMe": 2}
    assert entries.seeds.to_dict() == {"R0": 3, "ToMe": 3}


def test_measures_are_those_of_each_image(tmp_path):
    write(tmp_path, "one", {("ToMe", 0.6): on_all_seeds(logits(0.5, -2))})
    field = load_field(tmp_path, RESAMPLES)
    for seed in SEEDS:
        expected = [kl_of((0.5, -2)[image % 2]) for image in range(IMAGES)]
        assert field.samples("kl", "ToMe", 0.6)[seed].tolist() == pytest.approx(expected, abs=1e-9)
        # a margin above 0 is class 0: images 0, 2, ... have label 0 and margin 0.5, the others label 1 and -2
        assert field.samples("top1", "ToMe", 0.6)[seed].tolist() == [1.0] * IMAGES
        # the full model is undecided, and the first of equal logits is its class
        assert field.samples("agreement", "ToMe", 0.6)[seed].tolist() == [1.0, 0.0] * (IMAGES // 2)


def test_the_interval_is_of_the_mean_over_seeds_and_of_each(tmp_path):
    by_seed = {0: logits(1), 1: logits(2), 2: logits(3)}
    write(tmp_path, "one", {("ToMe", 0.6): by_seed})
    pooled, seeds = load_field(tmp_path, RESAMPLES).interval("kl", "ToMe", 0.6)
    assert {seed: one.value for seed, one in seeds.items()} == pytest.approx({s: kl_of(s + 1) for s in SEEDS})
    assert pooled.value == pytest.approx(sum(kl_of(m) for m in (1, 2, 3)) / 3)
    assert (pooled.low, pooled.high) == pytest.approx((pooled.value, pooled.value))


def test_the_frame_has_a_row_a_setting_with_intervals(tmp_path):
    write(tmp_path, "one", {("ToMe", 0.6): on_all_seeds(logits(0.5, -2)), ("ToMe", 0.5): on_all_seeds(logits(3))})
    frame = load_field(tmp_path, RESAMPLES).frame().set_index(["method", "budget"])
    assert set(frame.index) == {("full", 1.0), ("ToMe", 0.5), ("ToMe", 0.6)}
    row = frame.loc["ToMe", 0.6]
    assert (row.flops, row.images) == (0.6, IMAGES)
    assert row.kl == pytest.approx((kl_of(0.5) + kl_of(2)) / 2)
    assert row.kl_low < row.kl < row.kl_high
    assert (row.top1, row.agreement) == (1, 0.5)
    assert frame.loc[("full", 1.0), ["kl", "kl_low", "kl_high", "agreement"]].tolist() == [0, 0, 0, 1]


def test_the_ranking_is_by_rising_kl_with_the_difference_to_the_next(tmp_path):
    methods = {("far", 0.6): logits(3), ("near", 0.6): logits(1), ("between", 0.6): logits(2), ("near", 0.5): logits(9)}
    write(tmp_path, "one", {setting: on_all_seeds(values) for setting, values in methods.items()})
    ranking = load_field(tmp_path, RESAMPLES).ranking(0.6)
    assert ranking.method.tolist() == ["near", "between", "far"]
    assert ranking["rank"].tolist() == [1, 2, 3]
    assert ranking.kl.tolist() == pytest.approx([kl_of(1), kl_of(2), kl_of(3)])
    assert ranking["to_next"][0] == pytest.approx(kl_of(1) - kl_of(2))
    assert ranking["to_next"][1] == pytest.approx(kl_of(2) - kl_of(3))
    assert ranking["to_next"].isna().tolist() == [False, False, True]
    assert ranking.settled.tolist()[:2] == ["yes", "yes"]


@pytest.mark.parametrize(
    ("best", "settled"),
    [
        ({0: logits(1), 1: logits(1), 2: logits(1)}, "yes"),
        # clearly better on two seeds and over all of them, a little worse on the third
        ({0: logits(0.5), 1: logits(0.5), 2: logits(2.1)}, "no"),
        # better on average on every seed, but on one image in twenty far worse: the interval reaches over 0
        ({0: logits(*[1.9] * 19, 3), 1: logits(*[1.9] * 19, 3), 2: logits(*[1.9] * 19, 3)}, "no"),
        # noisy within each seed, but what one seed gets wrong the others get right
        ({0: logits(1, 2.2), 1: logits(2.2, 1), 2: logits(1)}, "yes"),
    ],
)
def test_a_rank_is_settled_when_the_interval_is_below_zero_with_one_sign_on_every_seed(tmp_path, best, settled):
    write(tmp_path, "one", {("best", 0.6): best, ("next", 0.6): on_all_seeds(logits(2))})
    ranking = load_field(tmp_path, RESAMPLES).ranking(0.6)
    assert ranking.method.tolist() == ["best", "next"]
    assert ranking["to_next"][0] < 0
    assert ranking["to_next_low"][0] <= ranking["to_next"][0] <= ranking["to_next_high"][0]
    assert ranking.settled[0] == settled


def test_methods_are_ranked_on_the_images_that_all_have_seen(tmp_path):
    """`long` is better where both ran, and worse only on images that `short` never saw."""
    long = logits(1)
    long[20:] = logits(6, count=20)
    methods = {("long", 0.6): on_all_seeds(long), ("short", 0.6): on_all_seeds(logits(2, count=20))}
    write(tmp_path, "one", methods)
    ranking = load_field(tmp_path, RESAMPLES).ranking(0.6)
    assert ranking.method.tolist() == ["long", "short"]
    assert ranking.images.tolist() == [20, 20]
    assert ranking.kl.tolist() == pytest.approx([kl_of(1), kl_of(2)])
    assert ranking.settled[0] == "yes"


def test_nobody_is_ranked_at_a_budget_where_nobody_ran(tmp_path):
    write(tmp_path, "one", {("ToMe", 0.6): on_all_seeds(logits(1))})
    assert load_field(tmp_path, RESAMPLES).ranking(0.4).empty


@pytest.mark.parametrize("longer", ["one", "two"])
def test_the_longer_run_of_a_method_wins(tmp_path, longer):
    values = logits(1, 2, 3)
    for slug in ("one", "two"):
        count = IMAGES if slug == longer else 10
        write(tmp_path, slug, {("ToMe", 0.6): on_all_seeds(values[:count])}, images=count)
    field = load_field(tmp_path, RESAMPLES)
    expected = [kl_of((1, 2, 3)[image % 3]) for image in range(IMAGES)]
    assert field.samples("kl", "ToMe", 0.6)[0].tolist() == pytest.approx(expected)


def test_rounding_between_two_runs_of_a_method_is_no_disagreement(tmp_path):
    write(tmp_path, "one", {("ToMe", 0.6): on_all_seeds(logits(1))})
    write(tmp_path, "two", {("ToMe", 0.6): on_all_seeds(logits(1 + 1e-5))})
    assert load_field(tmp_path, RESAMPLES).methods(0.6) == ["ToMe"]


@pytest.mark.parametrize("changed", ["ToMe|0.6|1", "full|1.0|1", "labels|1.0|1"])
def test_papers_that_disagree_are_refused_by_name(tmp_path, changed):
    for slug in ("one", "two"):
        write(tmp_path, slug, {("ToMe", 0.6): on_all_seeds(logits(1))})
    file = tmp_path / "two" / "results.safetensors"
    tensors = load_file(file)
    tensors[changed] = tensors[changed].copy()
    tensors[changed][3] += 1
    save_file(tensors, file)
    method, budget, seed = changed.split("|")
    with pytest.raises(TokenariumError) as error:
        load_field(tmp_path, RESAMPLES)
    message = str(error.value)
    assert f"two has other results for {method} at {float(budget):g}, seed {seed}" in message
    assert "dvc repro" in message
    assert "\n" not in message


def test_papers_on_different_models_are_refused_by_name(tmp_path):
    """One paper was last run at another profile: its model has other classes."""
    write(tmp_path, "one", {("ToMe", 0.6): on_all_seeds(logits(1))})
    (tmp_path / "two").mkdir()
    save_file({"ToMe|0.6|0": np.zeros((IMAGES, 7), dtype=np.float32)}, tmp_path / "two" / "results.safetensors")
    with pytest.raises(TokenariumError, match=r"two has other results for ToMe at 0\.6, seed 0"):
        load_field(tmp_path, RESAMPLES)


@pytest.mark.parametrize("made", [False, True])
def test_an_empty_field_names_the_mend(tmp_path, made):
    folder = tmp_path / "vision"
    if made:
        (folder / "pitome").mkdir(parents=True)
    with pytest.raises(TokenariumError, match=r"vision holds no results: run .*dvc repro"):
        load_field(folder, RESAMPLES)


@pytest.mark.parametrize(
    ("method", "key"),
    [("ToMe + prop", "tome_prop"), ("R0, every block", "r0_every_block"), ("alpha 0.5", "alpha_0_5"), ("EViT", "evit")],
)
def test_a_methods_name_becomes_part_of_a_metrics_name(method, key):
    assert metric_key(method) == key
