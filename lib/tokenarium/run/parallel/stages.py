"""DVC's side of a parallel run: which stages there are, which are stale, and how their outputs are committed.

A stage goes through what `dvc repro` does with it, in the same order and by DVC's own functions; only the moment in
which its commands run is left to somebody else. DVC's lock is held before and after that, not during.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dvc.dependency.db import AbstractDependency
from dvc.dependency.repo import RepoDependency
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.rwlock import rwlock
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.run import _enforce_cmd_list, _make_cmd, get_executable, prepare_kwargs
from dvc.utils.serialize import modify_yaml

from tokenarium.errors import TokenariumError
from tokenarium.run.parallel.worker import Task

DVC_LOG = logging.getLogger("dvc")
ATTEMPTS = 20  # DVC waits three seconds in each


class Stages:
    """The stages that `dvc repro <targets>` would look at, by name, in its order, and what each waits for.

    `alone` are stages that come on top without what they depend on (`--single-item`). The working directory must be
    `tree`: DVC names stages relative to it. Raises TokenariumError when DVC cannot read the pipeline.
    """

    def __init__(self, tree: Path, targets: Sequence[str] = (), alone: Sequence[str] = ()):
        self._tree = tree
        self._held: dict[str, ExitStack] = {}
        self._level = DVC_LOG.level
        DVC_LOG.setLevel(logging.WARNING)  # its lines would run between those of the view
        with _explained():
            self._repo = Repo(str(tree))
            with self._locked():
                graph = get_active_graph(self._repo.index.graph)
                wanted = collect_stages(self._repo, targets or ["dvc.yaml"])
                steps = plan_repro(graph, wanted)
                steps += [stage for stage in collect_stages(self._repo, alone) if stage not in steps]
        self._stages = {stage.addressing: stage for stage in steps}
        self.upstream: dict[str, frozenset[str]] = {
            name: frozenset(each.addressing for each in graph.successors(stage) if each.addressing in self._stages)
            for name, stage in self._stages.items()
        }
        self._in_lock = list(self._lock_file_stages())

    @property
    def names(self) -> list[str]:
        """Stages in the order of `dvc repro`: each after what it waits for."""
        return list(self._stages)

    def close(self) -> None:
        """Give back what is held of DVC."""
        for name in list(self._held):
            self.abandon(name)
        self._repo.close()
        DVC_LOG.setLevel(self._level)

    def changed(self, name: str) -> bool:
        """Whether DVC would run the stage now. Its upstream must be up to date for the answer to stand."""
        with self._locked(), _explained():
            return self._stages[name].changed()

    def begin(self, name: str, log: Path, surround: Callable[[dict[str, str]], dict[str, str]]) -> Task | None:
        """Do what DVC does before a changed stage's commands run; returns them, or None when the stage is done already.

        Its old outputs go unless they persist. What the run cache holds is checked out and committed, as are stages
        without a command. `surround` changes the environment that DVC gives the commands.
        """
        stage = self._stages[name]
        with self._locked(), _explained():
            if stage.frozen or not stage.cmd:
                if stage.reproduce(interactive=False, upstream=[]):
                    stage.dump(update_pipeline=False)
                return None
            stage.remove_outs(ignore_remove=False, force=False)
            try:
                self._repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                stage.save_deps()
            else:
                with self._repo.scm_context(quiet=True):
                    self._save(stage)
                    self._dump([stage])
                return None
            self._hold(name)
        given = prepare_kwargs(stage)
        shell = get_executable()
        commands = tuple(tuple(_make_cmd(shell, command)) for command in _enforce_cmd_list(stage.cmd))
        return Task(name, commands, str(given["cwd"]), surround(given["env"]), str(log))

    def finish(self, names: Sequence[str]) -> dict[str, str]:
        """Commit the outputs of stages whose commands succeeded, one after the other, and write dvc.lock once.

        Returns what is wrong with those that could not be committed, an output that is missing, say.
        """
        errors, saved = {}, []
        with self._locked(), self._repo.scm_context(quiet=True):
            for name in names:
                self._release(name)
                try:
                    with _explained():
                        self._save(self._stages[name])
                    saved.append(self._stages[name])
                except TokenariumError as error:
                    errors[name] = str(error)
            with _explained():
                self._dump(saved)
        return errors

    def abandon(self, name: str) -> None:
        """The commands of a stage failed: it stays stale."""
        if name in self._held:
            with self._locked():
                self._release(name)

    def sort_lock_file(self) -> None:
        """Put the stages that are new in dvc.lock into the order in which `dvc repro` would have written them."""
        kept = set(self._in_lock)
        there = list(self._lock_file_stages())
        order = [*(name for name in self._in_lock if name in there), *(n for n in self.names if n in there)]
        order = list(dict.fromkeys([*order, *there]))
        if there != order and set(there) != kept:
            with self._locked(), modify_yaml(self._tree / "dvc.lock", fs=self._repo.fs) as lock:
                lock["stages"] = {name: lock["stages"][name] for name in order}

    def _lock_file_stages(self) -> Sequence[str]:
        from dvc.utils.serialize import load_yaml

        path = self._tree / "dvc.lock"
        return list(load_yaml(path).get("stages") or {}) if path.exists() else []

    @staticmethod
    def _save(stage: Any) -> None:
        plain = any(not out.use_cache for out in stage.outs if not (out.is_metric or out.is_plot))
        stage.save(run_cache=not plain)
        stage.commit()

    @staticmethod
    def _dump(stages: Sequence[Any]) -> None:
        """Write stages to dvc.lock: DVC parses and writes all of it each time, so several share one go."""
        files = {stage.dvcfile.path: stage.dvcfile for stage in stages}
        for path, file in files.items():
            file.dump_stages([stage for stage in stages if stage.dvcfile.path == path], update_pipeline=False)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """DVC's lock of the checkout; a command that holds it for long is waited for."""
        with ExitStack() as stack:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    stack.enter_context(lock_repo(self._repo))
                    break
                except LockError:
                    if attempt == ATTEMPTS:
                        raise TokenariumError("another DVC command holds its lock here: wait for it to end") from None
            yield

    def _hold(self, name: str) -> None:
        """Tell other DVC commands, in the file that DVC keeps for that, what a running stage reads and writes."""
        stage = self._stages[name]
        # No DVC repository locks what it imports from another one, or from a database.
        reads = [d.fs_path for d in stage.deps if not isinstance(d, RepoDependency | AbstractDependency)]
        repo = self._repo
        self._held[name] = ExitStack()
        self._held[name].enter_context(
            rwlock(
                repo.tmp_dir,
                repo.fs,
                f"{' '.join(sys.argv)} ({name})",
                reads,
                [out.fs_path for out in stage.outs],
                repo.config["core"].get("hardlink_lock", False),
            )
        )

    def _release(self, name: str) -> None:
        self._held.pop(name).close()


@contextmanager
def _explained() -> Iterator[None]:
    """An error of DVC as one line."""
    try:
        yield
    except (DvcException, OSError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise TokenariumError(told[0]) from error
