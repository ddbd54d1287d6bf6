"""Draw docs/scenes.png: scenes of both kinds with a question each, and the patches that its answer rests on."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from tokenarium.data import scenes


def main() -> None:
    objects, pages = scenes.evaluation(3), scenes.page_evaluation(9)
    shown = [
        *((objects, index) for index in (5, 1, 12, 8, 4, 10, 6, 7, 3, 9)),
        *((pages, index) for index in (0, 4, 2, 1, 8)),
    ]
    figure, axes = plt.subplots(3, 5, figsize=(13, 8.6), layout="constrained")
    for axis, (chosen, index) in zip(axes.flat, shown, strict=True):
        scene, question = chosen.scenes[index], chosen.questions[index]
        axis.imshow(scene.draw(), interpolation="nearest")
        for patch in scene.relevant(question).nonzero()[0]:
            row, column = divmod(int(patch), scenes.GRID)
            corner = column * scenes.PATCH - 0.5, row * scenes.PATCH - 0.5
            axis.add_patch(Rectangle(corner, scenes.PATCH, scenes.PATCH, fill=False, edgecolor="0.5", linewidth=0.8))
        axis.set_title(f"{question.text}\n{question.answer}", fontsize=9)
        axis.set_axis_off()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
