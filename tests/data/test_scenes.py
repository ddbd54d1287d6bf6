"""Procedural scenes: drawings, masks and answers against a slow reading of the items, and balanced questions."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.data import scenes
from tokenarium.data.scenes import FAMILIES, GRID, LETTERS, PATCH, SIZE

EVALUATION = scenes.evaluation()
PAGES = scenes.page_evaluation()
some_scene = st.builds(
    scenes.scene, st.sampled_from(("one", "two")), st.integers(0, 10**6), pages=st.sampled_from((0.0, 0.5, 1.0))
)


def drawn_pixels(scene, index):
    """Where an item changes the picture: drawn with it and without it."""
    items = scene.items
    without = scenes.Scene((*items[:index], *items[index + 1 :]), scene.ground, scene.texture, scene.density)
    return (scene.draw() != without.draw()).any(2)


def kind_of(item):
    return "letter" if item.noun in LETTERS else "shape"


def slow_answer(scene, text):
    """Answer a question from the list of items alone, by reading its words."""
    items = list(scene.items)

    def meant(words):
        color = [word for word in words if word in scenes.COLORS]
        noun = [word for word in words if word in scenes.NOUNS]
        fitting = [i for i in items if (not color or i.color == color[0]) and (not noun or i.noun == noun[0])]
        return fitting

    words = text.split()
    if words[:2] == ["what", "color"]:
        (item,) = meant(words)
        return item.color
    if words[:2] == ["what", "shape"]:
        (item,) = meant(words)
        return item.noun
    if words[:2] == ["is", "there"]:
        return "yes" if meant(words) else "no"
    if words[:3] == ["how", "many", "words"]:
        grid = [[" "] * (scenes.ROWS + 1) for _ in range(scenes.ROWS)]
        for item in items:
            if kind_of(item) == "letter":
                grid[item.top // scenes.PAGE_CELL][item.left // scenes.PAGE_CELL] = "x"
        return str(sum(len("".join(row).split()) for row in grid))
    if words[:2] == ["how", "many"]:
        name = words[3] if words[2] in scenes.COLORS else words[2]
        if name == "letters":
            return str(sum(kind_of(item) == "letter" for item in items))
        singular = {"crosses": "cross"}.get(name, name[:-1])
        return str(sum(item.color == words[2] if name == "things" else item.noun == singular for item in items))
    if words[:3] == ["on", "which", "side"]:
        place = words.index("is")
        (anchor,), (item,) = meant(words[:place]), meant(words[place:])
        pixels = [np.argwhere(drawn_pixels(scene, items.index(each))) for each in (anchor, item)]
        (y0, x0), (y1, x1) = [(each.min(0) + each.max(0)) / 2 for each in pixels]
        if abs(x1 - x0) > abs(y1 - y0):
            return "left" if x1 < x0 else "right"
        return "above" if y1 < y0 else "below"
    letters = [item for item in items if kind_of(item) == "letter"]
    if words[:4] == ["which", "letter", "is", "at"]:
        row, column = int(words[5]) - 1, int(words[7]) - 1
        inside = [i for i in letters if (i.top // 16, i.left // 16) == (row, column)]
        return inside[0].noun if len(inside) == 1 else None
    if words[3] == "right":
        (marker,) = meant(words[3:])
        after = [i for i in letters if i.top // 16 == marker.top // 16 and i.left // 16 == marker.left // 16 + 1]
        return after[0].noun
    if words[3] in scenes.SIZES:
        letters = [item for item in letters if item.size == words[3]]
    elif words[3] in scenes.COLORS:
        letters = [item for item in letters if item.color == words[3]]
    (item,) = letters
    return item.noun


@settings(max_examples=40, deadline=None)
@given(some_scene)
def test_masks_hold_the_patches_that_an_item_is_drawn_on(scene):
    for index, mask in enumerate(scene.masks()):
        changed = drawn_pixels(scene, index)
        for row in range(GRID):
            for column in range(GRID):
                patch = changed[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                assert mask[row, column] == (patch.sum() >= scenes.COVER)
        assert mask.any()


@settings(max_examples=40, deadline=None)
@given(some_scene)
def test_items_lie_inside_the_picture_and_never_overlap(scene):
    total = np.zeros((SIZE, SIZE), int)
    for index in range(len(scene.items)):
        changed = drawn_pixels(scene, index)
        assert changed.sum() == scenes.stamp(scene.items[index].noun, scene.items[index].size).sum()
        total += changed
    assert total.max() == 1
    assert scene.ink() == pytest.approx(total.mean())


@settings(max_examples=60, deadline=None)
@given(some_scene, st.integers(0, 9))
def test_every_answer_is_what_a_slow_reader_of_the_items_says(scene, seed):
    found = scenes.questions(scene, random.Random(seed))
    for family, by_answer in found.items():
        for answer, asked in by_answer.items():
            for question in asked:
                assert (question.family, question.answer) == (family, answer)
                assert slow_answer(scene, question.text) == answer
                assert all(0 <= index < len(scene.items) for index in question.items)


def test_the_evaluation_sets_are_answered_right_and_use_known_words_only():
    known = set(scenes.WORDS)
    for chosen in (EVALUATION, PAGES):
        for scene, question in zip(chosen.scenes, chosen.questions, strict=True):
            assert slow_answer(scene, question.text) == question.answer
            assert {*question.text.split(), question.answer, *scene.caption().split()} <= known
            assert set(question.prompt.split()) - {scenes.IMAGE} <= known


def test_a_question_rests_on_the_items_that_it_names():
    for scene, question in zip(EVALUATION.scenes, EVALUATION.questions, strict=True):
        items = [scene.items[index] for index in question.items]
        words = question.text.split()
        if question.family == "attribute" or question.answer == "yes":
            assert all(item.noun in words or item.color in words for item in items)
        if question.family == "count":
            assert len(items) == int(question.answer)
        if question.family == "relation":
            assert len(items) == 2
            assert all(item.noun in words for item in items)
        if question.family == "glyph":
            assert [item.noun for item in items] == [question.answer]
        if question.answer in ("no", "0"):
            assert items == []
        assert bool(items) == scene.relevant(question).any()


def test_the_evaluation_has_160_questions_of_each_family_in_turn_with_answers_in_equal_shares():
    assert [question.family for question in EVALUATION.questions] == list(FAMILIES) * 160
    for family in FAMILIES:
        answers = Counter(question.answer for question in EVALUATION.questions if question.family == family)
        assert max(answers.values()) - min(answers.values()) <= 1, answers
    # The best guess that knows the family alone: far from any reader of the picture.
    best = sum(
        Counter(q.answer for q in EVALUATION.questions if q.family == family).most_common(1)[0][1]
        for family in FAMILIES
    )
    assert best / 800 < 0.28


def test_knowing_the_question_without_the_picture_helps_little():
    """Answers of other questions with the same words, of another stream, as a blind model could learn them."""
    learnt: dict[str, Counter] = {}
    for index in range(3000):
        scene, rng = scenes.scene("blind", index), random.Random(index)
        for question in scenes.draw(scenes.questions(scene, rng), rng, 16):
            learnt.setdefault(question.text, Counter())[question.answer] += 1
    hits = [
        question.text in learnt and learnt[question.text].most_common(1)[0][0] == question.answer
        for question in EVALUATION.questions
    ]
    assert np.mean(hits) < 0.5


def test_a_smaller_evaluation_begins_the_larger_and_nothing_depends_on_the_process():
    small = scenes.evaluation(3)
    assert small.questions == EVALUATION.questions[:15]
    assert small.scenes == EVALUATION.scenes[:15]
    assert small.images.shape == (15, 96, 96, 3)
    assert small.relevant.shape == small.objects.shape == (15, GRID**2)
    assert not (small.relevant & ~small.objects).any()
    assert np.array_equal(small.images, EVALUATION.subset(range(15)).images)
    assert scenes.evaluation(3, "held-out").scenes != small.scenes


def test_pages_come_in_three_densities_with_ever_more_ink():
    assert [scene.density for scene in PAGES.scenes[:6]] == list(scenes.DENSITIES) * 2
    ink = [np.mean([scene.ink() for scene in PAGES.scenes if scene.density == name]) for name in scenes.DENSITIES]
    assert ink[0] * 2 < ink[1] < ink[2] / 2
    families = Counter(question.family for question in PAGES.questions)
    assert families["glyph"] > 400
    assert families["attribute"] >= 190
    assert families["count"] >= 120


def test_drawn_questions_take_families_in_turn_and_avoid_repetition():
    scene, rng = scenes.objects(random.Random(5), 8, textured=True), random.Random(0)
    found = scenes.questions(scene, rng)
    drawn = scenes.draw(found, rng, 2 * len(found))
    assert len({question.text for question in drawn}) == len(drawn)
    lone = scenes.objects(random.Random(1), 1, textured=False)
    few = scenes.draw(scenes.questions(lone, rng), rng, 40)
    assert len(few) == 40


def test_another_density_is_refused():
    with pytest.raises(ValueError, match="density"):
        scenes.page(random.Random(0), "huge")
