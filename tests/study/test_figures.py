"""Figures: the right line for every method, axes that say what they show, one colour a method."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

mpl.use("Agg")

import matplotlib.pyplot as plt

from tokenarium.study.figures import budget_curves, interval_rows, show_groups
from tokenarium.study.style import METHOD_COLOURS, colour, paper_marks, use_style

pytestmark = pytest.mark.filterwarnings("error")  # matplotlib's own among them

METHODS = ["ToMe", "ToMe + prop", "PiToMe", "PiToMe mae-order", "something new"]
BUDGETS = [0.85, 0.5, 0.6]  # not in order: the runs need not be


@pytest.fixture(autouse=True)
def style_and_tidy():
    with mpl.rc_context():
        use_style()
        yield
    plt.close("all")


def value_of(method: str, budget: float) -> float:
    return (1 + METHODS.index(method)) * (1 - budget)


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [{"method": "full", "flops": 1.0, "kl": 0.0, "top1": 0.9, "drop": 0.0, "agreement": 1.0}]
    for method in METHODS:
        for budget in BUDGETS:
            value = value_of(method, budget)
            row = {"method": method, "flops": budget, "kl": value, "top1": 0.9 - value / 10, "drop": 10 * value}
            rows.append(row | {"agreement": 1 - value / 10})
    for row in rows:
        for measure in ("kl", "top1", "drop", "agreement"):
            row |= {f"{measure}_low": 0.9 * row[measure], f"{measure}_high": 1.1 * row[measure]}
    return pd.DataFrame(rows)


def lines_of(axes) -> dict:
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_budget_curves_have_one_panel_a_measure_with_units_on_both_axes(frame):
    figure = budget_curves(frame, ["kl", "top1", "drop"])
    figure.canvas.draw()
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "KL(full || reduced), nats",
        "top-1 accuracy (%)",
        "loss of top-1 accuracy (points)",
    ]
    assert {axes.get_xlabel() for axes in figure.axes} == {"FLOPs (% of the full model)"}
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]


def test_a_measure_without_a_label_is_shown_by_its_name(frame):
    frame[["speed", "speed_low", "speed_high"]] = frame[["kl", "kl_low", "kl_high"]]
    assert budget_curves(frame, ["speed"]).axes[0].get_ylabel() == "speed"


def test_budget_curves_draw_each_method_once_from_left_to_right(frame):
    figure = budget_curves(frame, ["kl", "top1"])
    for axes, values in zip(
        figure.axes, (lambda m, b: value_of(m, b), lambda m, b: 100 * (0.9 - value_of(m, b) / 10)), strict=True
    ):
        lines = lines_of(axes)
        assert list(lines) == METHODS
        for method, line in lines.items():
            assert list(line.get_xdata()) == pytest.approx([50, 60, 85])
            assert list(line.get_ydata()) == pytest.approx([values(method, b) for b in (0.5, 0.6, 0.85)])


def test_budget_curves_draw_the_interval_as_a_band_in_the_lines_colour(frame):
    axes = budget_curves(frame, ["kl"]).axes[0]
    assert len(axes.collections) == len(METHODS)
    for line, band in zip(lines_of(axes).values(), axes.collections, strict=True):
        points = band.get_paths()[0].vertices
        at_left = points[np.isclose(points[:, 0], 50), 1]
        value = line.get_ydata()[0]
        assert [at_left.min(), at_left.max()] == pytest.approx([0.9 * value, 1.1 * value])
        assert to_hex(band.get_facecolor()[0]) == to_hex(line.get_color())


def test_a_method_has_its_colour_and_is_dashed_with_proportional_attention(frame):
    lines = lines_of(budget_curves(frame, ["kl"]).axes[0])
    assert {method: line.get_color() for method, line in lines.items()} == {
        "ToMe": METHOD_COLOURS["ToMe"],
        "ToMe + prop": METHOD_COLOURS["ToMe"],
        "PiToMe": METHOD_COLOURS["PiToMe"],
        "PiToMe mae-order": METHOD_COLOURS["PiToMe"],
        "something new": colour("something new"),
    }
    assert [line.get_linestyle() for line in lines.values()] == ["-", "--", "-", "-", "-"]


def test_no_two_lines_look_the_same(frame):
    names = [*METHODS, "R0", "R0, every block", "prune", "random anchors", "hard", "CLS top-k", "R0 + prop"]
    looks = pd.concat([frame[frame.method == "ToMe"].assign(method=name) for name in names])
    lines = lines_of(budget_curves(looks, ["kl"]).axes[0])
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines.values()}) == len(names)
    assert lines["R0 + prop"].get_marker() == lines["R0"].get_marker()


def test_every_method_is_in_the_legend_once(frame):
    figure = budget_curves(frame, ["kl", "top1"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == METHODS


def test_the_full_model_is_a_grey_line_where_it_has_a_place(frame):
    kl, top1, agreement = budget_curves(frame, ["kl", "top1", "agreement"]).axes
    for axes, height in ((top1, 90), (agreement, 100)):
        (line,) = [line for line in axes.get_lines() if line.get_label().startswith("_")]
        assert list(line.get_ydata()) == pytest.approx([height, height])
        assert to_rgb(line.get_color()) == (0.5, 0.5, 0.5)
    assert len(kl.get_lines()) == len(METHODS)  # its KL is 0, which a logarithmic axis does not have


def test_budget_curves_do_without_the_full_model(frame):
    figure = budget_curves(frame[frame.method != "full"], ["kl", "top1"])
    figure.canvas.draw()
    assert [len(axes.get_lines()) for axes in figure.axes] == [len(METHODS)] * 2


GRID = 3
# 0: one patch; 1: three patches; 2: two patches. Patches 6 and 7 are pruned, 8 is split between tokens 1 and 2.
SOURCE = np.array(
    [
        [1, 0, 0, 0, 0, 0, 0, 0, 0.0],
        [0, 1, 1, 0, 0, 0, 0, 0.3, 0.6],
        [0, 0, 0, 1, 1, 0, 0, 0, 0.4],
        [0, 0, 0, 0, 0, 1, 0, 0, 0],
    ]
)


def groups():
    figure, axes = plt.subplots()
    show_groups(axes, np.arange(36).reshape(6, 6), SOURCE, GRID, "after block 3")
    figure.canvas.draw()
    picture, overlay = axes.get_images()
    return axes, picture, np.asarray(overlay.get_array()).reshape(GRID * GRID, 4)


def test_patches_of_a_merged_token_share_a_colour_of_their_own():
    _, _, patches = groups()
    one, other = patches[1], patches[3]
    assert one[3] == other[3] > 0
    assert not np.allclose(one[:3], other[:3])
    for member in (2, 8):  # patch 8 lies with its larger share
        assert patches[member].tolist() == one.tolist()
    assert patches[4].tolist() == other.tolist()


def test_single_patches_are_clear_and_pruned_ones_black():
    _, _, patches = groups()
    assert [patches[alone][3] for alone in (0, 5)] == [0, 0]
    for lost in (6, 7):
        assert patches[lost].tolist() == [0, 0, 0, 1]


def test_groups_lie_on_the_image_with_the_number_of_tokens_above():
    axes, picture, _ = groups()
    assert {tuple(image.get_extent()) for image in axes.get_images()} == {(0, GRID, GRID, 0)}
    assert np.asarray(picture.get_array()).tolist() == np.arange(36).reshape(6, 6).tolist()
    assert axes.get_title() == "after block 3\n4 tokens"
    assert list(axes.get_xticks()) == list(axes.get_yticks()) == []


ROWS = {"ToMe": (0.2, 0.1, 0.4), "PiToMe": (-0.3, -0.5, -0.2), "somebody else": (0.0, 0.0, 0.0)}


def test_interval_rows_are_points_with_intervals_from_top_to_bottom():
    figure = interval_rows(ROWS, "KL difference, nats", reference=0)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_xlabel() == "KL difference, nats"
    labels = {
        round(place): text.get_text() for place, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    }
    assert [labels[row] for row in (2, 1, 0)] == list(ROWS)
    for container in axes.containers:
        point, _, (bar,) = container
        label = labels[round(float(point.get_ydata()[0]))]
        value, low, high = ROWS[label]
        assert float(point.get_xdata()[0]) == value
        assert [float(x) for x in bar.get_segments()[0][:, 0]] == pytest.approx([low, high])
        assert to_hex(point.get_color()) == to_hex(colour(label))
    assert len(axes.containers) == len(ROWS)


def test_rows_that_are_no_methods_have_one_colour():
    axes = interval_rows({f"{share}% of the FLOPs": (0.2, 0.1, 0.4) for share in (85, 60, 50)}, "nats").axes[0]
    assert {to_hex(container[0].get_color()) for container in axes.containers} == {to_hex("0.2")}


def grey_lines(axes) -> list:
    return [line for line in axes.get_lines() if line.get_color() == "0.5"]


def test_the_reference_is_a_grey_line_and_may_be_left_out():
    (line,) = grey_lines(interval_rows(ROWS, "nats", reference=0.05).axes[0])
    assert list(line.get_xdata()) == [0.05, 0.05]
    assert grey_lines(interval_rows(ROWS, "nats").axes[0]) == []


@pytest.mark.parametrize(("log", "scale"), [(False, "linear"), (True, "log")])
def test_interval_rows_may_be_logarithmic(log, scale):
    figure = interval_rows({"ToMe": (0.2, 0.1, 0.4)}, "nats", log=log)
    figure.canvas.draw()
    assert figure.axes[0].get_xscale() == scale


@pytest.mark.parametrize(
    ("method", "same_as"),
    [
        ("PiToMe protect-all", "PiToMe"),
        ("ToMe at S3", "ToMe"),
        ("R0, every block", "R0"),
        ("random prune", "random prune"),
    ],
)
def test_a_variant_has_the_colour_of_its_method(method, same_as):
    assert colour(method) == METHOD_COLOURS[same_as]


def test_a_method_without_an_entry_has_a_colour_fixed_by_its_name_alone():
    assert colour("prune") == "#56B4E9"
    assert colour("ToMeish") != METHOD_COLOURS["ToMe"]


def test_the_papers_own_figures_are_black_crosses_with_one_legend_entry():
    axes = plt.subplot()
    paper_marks(axes, [1, 2], [3, 4])
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[1, 3], [2, 4]]
    assert (line.get_marker(), line.get_linestyle(), to_hex(line.get_color())) == ("x", "None", "#000000")
    assert axes.get_legend_handles_labels()[1] == ["the paper's figure"]
