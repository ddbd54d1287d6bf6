"""What a person sees: times as people say them, and on a terminal a live part that goes away at the end."""

import io

import pytest
from rich.console import Console

from tokenarium.run.parallel.view import View, duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (89.4, "89 s"),
        (91, "2 min"),
        (3569, "59 min"),
        (3600, "1 h 0 min"),
        (9000, "2 h 30 min"),
    ],
)
def test_times_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


@pytest.fixture
def screen():
    """A terminal of 100 columns; `screen.file.getvalue()` is all that was sent to it."""
    return Console(file=io.StringIO(), width=100, force_terminal=True, highlight=False)


def test_a_terminal_shows_what_runs_and_the_counts_below_the_lines_that_stay(screen):
    view = View(screen)
    view.waiting = 3
    with view:
        view.started("paper@a")
        view.expect(125)
        below = Console(file=io.StringIO(), width=100)
        below.print(view._below())
        view.ended("paper@b", "failed", detail="why")
    shown = below.file.getvalue()
    assert "paper@a  0.0 s" in shown
    assert "1 running, 3 waiting, 0 done, 0 failed, about 2 min left" in shown
    assert "failed   paper@b  why" in screen.file.getvalue()
    assert "running  paper@a" not in screen.file.getvalue()


def test_many_running_stages_are_cut_short(screen):
    view = View(screen)
    for index in range(20):
        view.running[f"s{index}"] = float(index)
    below = Console(file=io.StringIO(), width=100)
    below.print(view._below())
    lines = below.file.getvalue().splitlines()
    assert len(lines) == 12 + 2
    assert "and 8 more" in lines[-2]


def test_a_name_in_brackets_is_no_markup(view):
    view.ended("model@[red]x", "done", 1.0)
    assert "model@[red]x" in view.text()
