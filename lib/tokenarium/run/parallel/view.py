"""What a person sees of a parallel run: a line for every stage that ends, and on a terminal what runs now."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

SHOWN = 12  # running stages with a line of their own


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min, 1 h 20 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class View:
    """Lines on `console` as stages end; below them, on a terminal, the running stages, the counts and the time left."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self.running: dict[str, float] = {}
        self.waiting = self.done = self.failed = 0
        self.left: float | None = None
        self._told_at = 0.0
        terminal = self.console.is_terminal
        self._live = (
            Live(console=self.console, get_renderable=self._below, refresh_per_second=4, transient=True)
            if terminal
            else None
        )

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._live:
            self._live.stop()

    def line(self, text: str, style: str = "") -> None:
        """One line that stays."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def started(self, name: str) -> None:
        """A stage runs from now on."""
        self.running[name] = time.monotonic()
        if not self._live:
            self.line(f"running  {name}")

    def ended(self, name: str, how: str, seconds: float | None = None, detail: str = "", style: str = "") -> None:
        """A stage ended: `how` is one word (done, cached, failed)."""
        self.running.pop(name, None)
        took = f"  {duration(seconds)}" if seconds is not None else ""
        self.line(f"{how:<9}{name}{took}{'  ' + detail if detail else ''}{self._rest()}", style)

    def expect(self, seconds: float) -> None:
        """The forecast made now: so many seconds are left."""
        self.left, self._told_at = seconds, time.monotonic()

    def counts(self) -> str:
        """How many stages run, wait, are done and failed, and the time left."""
        told = f"{len(self.running)} running, {self.waiting} waiting, {self.done} done, {self.failed} failed"
        if self.left is None:
            return told
        return f"{told}, about {duration(max(0.0, self.left - (time.monotonic() - self._told_at)))} left"

    def _rest(self) -> str:
        return "" if self._live else f"  ({self.counts()})"

    def _below(self) -> Group:
        now = time.monotonic()
        names = sorted(self.running, key=self.running.__getitem__)
        lines = [Text(f"  {name}  {duration(now - self.running[name])}") for name in names[:SHOWN]]
        if len(names) > SHOWN:
            lines.append(Text(f"  and {len(names) - SHOWN} more"))
        return Group(*lines, Text(self.counts(), style="bold"))
