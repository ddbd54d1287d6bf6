"""Clips: who is seen when, what moves where, and the same events at any number of frames."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.data import clips, scenes

some_clip = st.builds(clips.clip, st.just("test"), st.integers(0, 10**6), st.sampled_from((8, 12, 16, 32)))


def seen(clip, item):
    return [number for number, frame in enumerate(clip.frames) if item in frame.items]


@settings(max_examples=60, deadline=None)
@given(some_clip)
def test_visitors_are_seen_in_a_quarter_of_the_frames_one_after_the_other(clip):
    first, last = (seen(clip, visitor) for visitor in clip.visitors)
    assert (tuple(first), tuple(last)) == clip.visits
    assert len(first) == len(last) == len(clip.frames) // 4
    assert first[-1] < last[0]
    assert all(seen(clip, item) == list(range(len(clip.frames))) for item in clip.stays)


@settings(max_examples=60, deadline=None)
@given(some_clip)
def test_items_stay_inside_and_never_overlap(clip):
    for frame in clip.frames:
        total = sum(scenes.Scene((item,), (0, 0, 0)).draw().any(2).astype(int) for item in frame.items)
        assert total.max() == 1
        assert frame.ink() == pytest.approx((total > 0).mean())


@settings(max_examples=60, deadline=None)
@given(some_clip)
def test_the_mover_crosses_the_picture_towards_its_side(clip):
    noun, color = clip.mover.noun, clip.mover.color
    places = [next(i.centre for i in frame.items if (i.noun, i.color) == (noun, color)) for frame in clip.frames]
    moved = np.subtract(places[-1], places[0])
    expected = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}[clip.side]
    assert np.sign(moved).tolist() == list(expected)
    assert abs(moved).sum() == scenes.SIZE - scenes.CELL


@settings(max_examples=60, deadline=None)
@given(some_clip)
def test_questions_are_answered_by_what_the_frames_show(clip):
    appeared = [item for frame in clip.frames for item in frame.items if item not in clip.frames[0].items]
    visitors = [item for item in (*clip.frames[0].items, *appeared) if len(seen(clip, item)) == len(clip.frames) // 4]
    order = sorted({*clip.visitors}, key=lambda item: seen(clip, item)[0])
    assert set(order) <= set(visitors)
    for question in clip.questions():
        words = question.text.split()
        if question.family == "order":
            visitor = order[0] if words[3] == "first" else order[1]
            assert question.answer == (visitor.color if words[1] == "color" else visitor.noun)
        if question.family == "visit":
            present = any((item.color, item.noun) == (words[2], words[3]) for f in clip.frames for item in f.items)
            assert question.answer == ("yes" if present else "no")
        assert set(words) | {question.answer} <= {*scenes.WORDS, *clips.WORDS}
        assert all(0 <= frame < len(clip.frames) for frame in question.frames)


def test_more_frames_show_the_same_events():
    for (few, asked), (many, also) in zip(clips.evaluation(30), clips.evaluation(30, frames=32), strict=True):
        assert (few.visitors, few.stays, few.side) == (many.visitors, many.stays, many.side)
        assert (asked.text, asked.answer) == (also.text, also.answer)
    assert [question.family for _, question in clips.evaluation(6)] == list(clips.FAMILIES) * 2
    assert clips.clip("a", 1).draw().shape == (8, 96, 96, 3)


def test_answers_of_the_evaluation_are_balanced():
    answers = [question.answer for _, question in clips.evaluation(300)]
    assert 35 <= answers.count("yes") <= 65
    assert all(10 <= answers.count(side) <= 40 for side in scenes.SIDES)


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="8 frames"):
        clips.clip("a", 0, 4)
