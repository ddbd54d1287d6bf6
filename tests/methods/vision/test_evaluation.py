"""The comparison of methods: matched budgets, the same images for all, differences paired by image."""

import math

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from tokenarium.methods.vision import baselines, pitome, tome
from tokenarium.methods.vision import token_transforming as tt
from tokenarium.methods.vision.harness import Reducer, run
from tokenarium.methods.vision.harness.evaluation import (
    MEASURES,
    Comparison,
    Method,
    evaluate,
    mean_over_seeds,
    paired_over_seeds,
)
from tokenarium.models.vision import Substrate

LAYERS, CLASSES, RESAMPLES = 12, 5, 200
S3 = (3, 6, 9)
BUDGETS = (0.85, 0.7, 0.6, 0.5, 0.4)


def substrate(seed: int, image_size: int = 20, images: int = 10, **options) -> Substrate:
    """A random ViT of 12 layers with 5x5 patches, unless `image_size` says otherwise, and random images."""
    torch.manual_seed(seed)
    config = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2} | options
    model = ViTForImageClassification(
        ViTConfig(
            num_hidden_layers=LAYERS,
            image_size=image_size,
            patch_size=4,
            num_channels=1,
            num_labels=CLASSES,
            **config,
        )
    ).eval()
    with torch.no_grad():  # at its initialisation a ViT hardly looks at the image
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    generator = torch.Generator().manual_seed(7)  # the same images for every seed
    x = torch.randn(images, 1, image_size, image_size, generator=generator)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    return Substrate(f"tiny-seed{seed}", seed, model, labels, lambda start, stop: x[start:stop])


def ratio_method(name: str, make, low: float = 0.5, **options) -> Method:
    return Method(name, make, low, 1.0, **options)


def energy_method(name: str, prop: bool = False, **options) -> Method:
    return Method(name, lambda q: pitome.PiToMe(q, num_layers=LAYERS, **options), 0.5, 1.0, prop)


TOME = Method("ToMe", lambda r: tome.ToMe(tuple(tome.fractional_r(r, LAYERS))), 0.0, 98.0)
PITOME = energy_method("PiToMe", order="deit-order")
RANDOM = ratio_method("random prune", baselines.RandomPrune)
PROP = Method("ToMe + prop", TOME.make, 0.0, 98.0, True)
METHODS = [
    TOME,
    PITOME,
    *(energy_method(order, order=order) for order in ("protect-all", "bsm-all", "mae-order", "clip-order")),
    ratio_method("energy prune", lambda q: baselines.EnergyPrune(q, num_layers=LAYERS)),
    ratio_method("CLS top-k", baselines.ClsTopK),
    ratio_method("random merge", baselines.RandomMerge),
    RANDOM,
    ratio_method("EViT", lambda q: baselines.EViTFuse(q, layers=S3), 0.02),
    ratio_method("prune", lambda q: tt.TokenTransforming(q, layers=S3, assignment="prune"), 0.02),
    ratio_method("R0", lambda q: tt.TokenTransforming(q, layers=S3), 0.02),
    ratio_method("R0, every block", lambda q: tt.TokenTransforming(q, layers=None), 0.02),
]
POOL = ratio_method("average pool", lambda q: baselines.AveragePool(q, layers=S3), 0.02, tolerance=0.1)


@pytest.fixture(scope="module")
def deit_grid():
    """The substrate's own sizes: 196 patches, dim 64."""
    return substrate(0, 56, images=1, hidden_size=64, intermediate_size=256)


@pytest.fixture(scope="module")
def tiny():
    return substrate(0)


@pytest.fixture(scope="module")
def comparison():
    """Two seeds; everything on all images but the random control, which saw the first four."""
    one = Comparison([substrate(0), substrate(3)], RESAMPLES, batch_size=4)
    one.run([(TOME, 0.6, None), (PROP, 0.6, None), (PITOME, 0.6, None), (RANDOM, 0.6, 4), (TOME, 0.5, None)])
    return one


def counted_cost(reducer, model, pixels) -> float:
    """Share of the full cost, from the lengths that a real run had: the account written out block by block."""
    trace = run(model, pixels, reducer, trace=True).trace
    c, hidden = model.config.hidden_size, model.config.intermediate_size
    cost = full = 0
    n0 = trace.inputs[0].shape[1]
    for layer, (before, after) in enumerate(zip(trace.inputs, trace.outputs, strict=True)):
        n, m = before.shape[1], after.shape[1]
        cost += 4 * n * c * c + 2 * n * n * c + 2 * m * c * hidden
        if hasattr(reducer, "overhead_flops"):
            cost += reducer.overhead_flops(layer, n, m, c, c // model.config.num_attention_heads)
        full += 4 * n0 * c * c + 2 * n0 * n0 * c + 2 * n0 * c * hidden
    return cost / full


@pytest.mark.parametrize("method", [*METHODS, POOL], ids=lambda method: method.name)
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_run_at_a_budget_costs_what_was_asked_to_within_the_tolerance(deit_grid, method, budget):
    reducer = method.at(budget, deit_grid)
    assert counted_cost(reducer, deit_grid.model, deit_grid.pixels(0, 1)) == pytest.approx(budget, abs=method.tolerance)


def test_a_budget_out_of_reach_is_refused(deit_grid):
    narrow = Method("ToMe", TOME.make, 0.0, 2.0)
    with pytest.raises(ValueError, match=r"no setting costs 0\.5"):
        narrow.at(0.5, deit_grid)


def test_the_full_model_is_evaluated_as_the_model_itself_computes(tiny):
    with torch.no_grad():
        expected = tiny.model(pixel_values=tiny.pixels(0, 10)).logits
        features = tiny.model.vit(tiny.pixels(0, 10)).last_hidden_state[:, 0]
    result = evaluate(tiny, batch_size=3)
    torch.testing.assert_close(result.logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.cls_feature, features, atol=1e-5, rtol=0)
    assert (result.flops, result.final_tokens) == (1.0, 26)


@pytest.mark.parametrize("prop", [False, True])
def test_an_evaluation_is_the_run_of_its_images_whatever_the_batch_size(tiny, prop):
    reducer = tome.ToMe((1,) * LAYERS)
    whole = run(tiny.model, tiny.pixels(0, 10), reducer, prop)
    for batch_size in (1, 4, 100):
        result = evaluate(tiny, reducer, prop, batch_size)
        torch.testing.assert_close(result.logits, whole.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(result.cls_feature, whole.cls_feature, atol=1e-5, rtol=0)
    assert result.final_tokens == 26 - 12
    assert result.flops == pytest.approx(counted_cost(reducer, tiny.model, tiny.pixels(0, 1)))


def test_a_limit_evaluates_the_first_images(tiny):
    result = evaluate(tiny, tome.ToMe((2,) * LAYERS), batch_size=4, limit=6)
    assert len(result.logits) == len(result.cls_feature) == 6
    torch.testing.assert_close(result.logits, evaluate(tiny, tome.ToMe((2,) * LAYERS)).logits[:6], atol=1e-5, rtol=0)


def test_a_model_in_half_precision_gives_results_in_single():
    half = substrate(0)
    half.model.to(torch.bfloat16)
    result = evaluate(half, Reducer())
    assert result.logits.dtype == result.cls_feature.dtype == torch.float32


def test_the_full_model_is_as_close_to_itself_as_can_be(comparison):
    for seed in (0, 3):
        assert comparison.samples("kl", "full", 1.0)[seed].tolist() == [0] * 10
        assert comparison.samples("agreement", "full", 1.0)[seed].tolist() == [1] * 10
        assert comparison.samples("cls_error", "full", 1.0)[seed].tolist() == [0] * 10


@pytest.mark.parametrize(("method", "budget", "count"), [("PiToMe", 0.6, 10), ("random prune", 0.6, 4)])
def test_measures_are_those_of_each_image(comparison, method, budget, count):
    for one in comparison.substrates:
        full = comparison.logits[f"full|1.0|{one.seed}"].astype(np.float64)
        reduced = comparison.logits[f"{method}|{budget}|{one.seed}"].astype(np.float64)
        assert reduced.shape == (count, CLASSES)
        found = {measure: comparison.samples(measure, method, budget)[one.seed] for measure in MEASURES}
        for image in range(count):
            p, q = (np.exp(x[image]) / sum(math.exp(value) for value in x[image]) for x in (full, reduced))
            kl = sum(float(p[k]) * (math.log(p[k]) - math.log(q[k])) for k in range(CLASSES))
            assert found["kl"][image] == pytest.approx(kl, abs=1e-9)
            assert found["top1"][image] == (int(reduced[image].argmax()) == int(one.labels[image]))
            assert found["agreement"][image] == (int(reduced[image].argmax()) == int(full[image].argmax()))
        assert min(found["kl"]) > 0


def test_the_feature_error_is_relative_to_the_full_models_feature(comparison):
    one = comparison.substrates[1]
    full, reduced = evaluate(one), evaluate(one, TOME.at(0.6, one))
    for image, error in enumerate(comparison.samples("cls_error", "ToMe", 0.6)[3]):
        a, b = full.cls_feature[image].double(), reduced.cls_feature[image].double()
        expected = math.sqrt(sum(float(x - y) ** 2 for x, y in zip(a, b, strict=True)) / sum(float(x) ** 2 for x in a))
        assert error == pytest.approx(expected, rel=1e-4)


def test_proportional_attention_is_used_where_the_method_asks_for_it(comparison):
    for one in comparison.substrates:
        expected = run(one.model, one.pixels(0, 10), TOME.at(0.6, one), proportional_attention=True).logits.numpy()
        np.testing.assert_allclose(comparison.logits[f"ToMe + prop|0.6|{one.seed}"], expected, atol=1e-5)
        assert not np.allclose(comparison.logits[f"ToMe|0.6|{one.seed}"], expected, atol=1e-3)


def test_the_logits_hold_every_setting_and_the_labels(comparison):
    settings = ("full|1.0", "labels|1.0", "ToMe|0.6", "ToMe + prop|0.6", "PiToMe|0.6", "random prune|0.6", "ToMe|0.5")
    assert set(comparison.logits) == {f"{setting}|{seed}" for setting in settings for seed in (0, 3)}
    assert comparison.logits["labels|1.0|3"].tolist() == comparison.substrates[1].labels.tolist()
    assert {values.dtype for name, values in comparison.logits.items() if "labels" not in name} == {np.dtype("float32")}


def resampled_means(differences: list[float]) -> list[float]:
    """Means of the resamples, drawn as `bootstrap` documents: rows of one generator of seed 0."""
    rows = np.random.default_rng(0).integers(len(differences), size=(RESAMPLES, len(differences)))
    return [sum(differences[i] for i in row) / len(differences) for row in rows]


def assert_is_bootstrap_of(interval, differences: list[float]):
    means = sorted(resampled_means(differences))
    assert interval.value == pytest.approx(sum(differences) / len(differences), abs=1e-12)
    for end, place in ((interval.low, 0.025 * (RESAMPLES - 1)), (interval.high, 0.975 * (RESAMPLES - 1))):
        below, share = int(place), place - int(place)
        assert end == pytest.approx((1 - share) * means[below] + share * means[below + 1], abs=1e-12)


def test_a_difference_is_paired_by_image_on_each_seed_and_over_the_seeds(comparison):
    pooled, seeds = comparison.difference("kl", ("PiToMe", 0.6), ("ToMe", 0.6), scale=10)
    a, b = comparison.samples("kl", "PiToMe", 0.6), comparison.samples("kl", "ToMe", 0.6)
    differences = {seed: [10 * (x - y) for x, y in zip(a[seed], b[seed], strict=True)] for seed in (0, 3)}
    assert seeds.keys() == differences.keys()
    for seed, interval in seeds.items():
        assert_is_bootstrap_of(interval, differences[seed])
    assert_is_bootstrap_of(pooled, [(x + y) / 2 for x, y in zip(differences[0], differences[3], strict=True)])
    assert "2 seeds" in pooled.how
    assert "10 images" in pooled.how


def test_a_difference_to_a_shorter_run_takes_its_images_only(comparison):
    a, b = comparison.samples("cls_error", "ToMe", 0.6), comparison.samples("cls_error", "random prune", 0.6)
    for one, other, sign in (("ToMe", "random prune", 1), ("random prune", "ToMe", -1)):
        pooled, seeds = comparison.difference("cls_error", (one, 0.6), (other, 0.6), scale=100)
        for seed, interval in seeds.items():
            assert_is_bootstrap_of(interval, [100 * sign * (a[seed][i] - b[seed][i]) for i in range(4)])
        assert "4 images" in pooled.how


def test_the_difference_of_a_setting_to_itself_is_exactly_zero(comparison):
    pooled, seeds = comparison.difference("kl", ("ToMe", 0.6), ("ToMe", 0.6))
    assert {(one.low, one.value, one.high) for one in (pooled, *seeds.values())} == {(0.0, 0.0, 0.0)}


def test_an_interval_is_of_each_seed_and_of_the_mean_over_seeds(comparison):
    pooled, seeds = comparison.interval("kl", "ToMe", 0.5, scale=2)
    values = comparison.samples("kl", "ToMe", 0.5)
    for seed, interval in seeds.items():
        assert_is_bootstrap_of(interval, [2 * x for x in values[seed]])
    assert_is_bootstrap_of(pooled, [x + y for x, y in zip(values[0], values[3], strict=True)])


def test_a_setting_that_did_not_run_is_named(comparison):
    with pytest.raises(KeyError, match=r"PiToMe at 0\.5"):
        comparison.samples("kl", "PiToMe", 0.5)


def test_pairs_need_the_same_seeds():
    one = {0: np.zeros(4), 1: np.ones(4)}
    with pytest.raises(ValueError, match=r"seeds \[0, 1\], the other on \[0\]"):
        paired_over_seeds(one, {0: np.zeros(4)}, RESAMPLES)
    with pytest.raises(ValueError, match="pairs are needed"):
        paired_over_seeds({0: np.zeros(4)}, one, RESAMPLES)


def test_the_mean_over_seeds_is_resampled_by_image_and_not_by_seed():
    """Two seeds that are right on opposite images: on average all images are alike and nothing is uncertain."""
    pooled, seeds = mean_over_seeds({0: np.array([1.0, 0, 1, 0]), 1: np.array([0.0, 1, 0, 1])}, RESAMPLES)
    assert (pooled.low, pooled.value, pooled.high) == (0.5, 0.5, 0.5)
    assert all(interval.low < 0.5 < interval.high for interval in seeds.values())


def test_the_frame_has_a_row_a_setting_with_cost_and_measures(comparison):
    frame = comparison.frame()
    settings = [("full", 1.0), ("ToMe", 0.6), ("ToMe + prop", 0.6), ("PiToMe", 0.6), ("random prune", 0.6)]
    assert list(zip(frame.method, frame.budget, strict=True)) == [*settings, ("ToMe", 0.5)]
    columns = {f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")}
    assert columns | {"method", "budget", "images", "flops", "final_tokens"} <= set(frame.columns)
    assert frame.images.tolist() == [10, 10, 10, 10, 4, 10]
    assert not frame.isna().any(axis=None)
    for row in frame.itertuples():
        assert abs(row.flops - row.budget) <= 0.01
        for measure in MEASURES:
            interval, _ = comparison.interval(measure, row.method, row.budget)
            found = [getattr(row, f"{measure}{end}") for end in ("", "_low", "_high")]
            assert found == pytest.approx([interval.value, interval.low, interval.high], abs=1e-12)
    assert frame.final_tokens[0] == 26
    assert frame.final_tokens[1] == TOME.at(0.6, comparison.substrates[0]).lengths(26, LAYERS)[-1]


def test_the_frame_gives_the_loss_of_accuracy_paired_by_image(comparison):
    for row in comparison.frame().itertuples():
        interval, _ = comparison.difference("top1", ("full", 1.0), (row.method, row.budget), scale=100)
        assert [row.drop, row.drop_low, row.drop_high] == pytest.approx([interval.value, interval.low, interval.high])


def test_the_frame_shows_what_was_asked_for(comparison):
    assert comparison.frame(["ToMe", "PiToMe"]).method.tolist() == ["ToMe", "PiToMe", "ToMe"]
    assert comparison.frame(budgets=[0.5]).method.tolist() == ["ToMe"]
    assert comparison.frame(["PiToMe"], [0.5]).empty


def test_every_method_meets_every_substrate_once_under_the_progress_bar():
    seen = []

    def progress(work):
        seen.extend((method.name, budget, limit, one.seed) for (method, budget, limit), one in work)
        return work

    one = Comparison([substrate(0), substrate(3)], RESAMPLES, batch_size=10)
    one.run(iter([(TOME, 0.6, 3), (RANDOM, 0.5, 2)]), progress)
    assert seen == [("ToMe", 0.6, 3, 0), ("ToMe", 0.6, 3, 3), ("random prune", 0.5, 2, 0), ("random prune", 0.5, 2, 3)]
    assert [len(one.samples("kl", "random prune", 0.5)[seed]) for seed in (0, 3)] == [2, 2]
