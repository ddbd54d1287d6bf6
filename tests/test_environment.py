"""One set of pins: requirements.lock covers what pyproject.toml asks for, and conda users get the same."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# What `make test` needs.
WANTED = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *PROJECT["project"]["optional-dependencies"]["dev"],
    *PROJECT["project"]["optional-dependencies"]["parallel"],
]


def pins(lines):
    """name -> version of the lines `name==version`; anything else is an error."""
    pinned = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!]+)", line)
        assert match, f"no plain pin: {line}"
        name = canonicalize_name(match[1])
        assert name not in pinned, f"pinned twice: {line}"
        pinned[name] = Version(match[2])
    return pinned


@pytest.fixture(scope="module")
def lock():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return pins(line for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("wanted", WANTED)
def test_every_direct_dependency_has_a_pin_that_fits(lock, wanted):
    requirement = Requirement(wanted)
    assert canonicalize_name(requirement.name) in lock
    assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)], prereleases=True)


def test_the_package_itself_and_its_installer_are_not_pinned(lock):
    assert "tokenarium" not in lock
    assert "pip" not in lock


def test_every_pin_installs_on_the_python_of_debian_stable(lock):
    """Debian 12 has 3.11.2; a package that asks for a later patch release of 3.11 would stop `make setup` there."""
    for name in lock:
        asked = SpecifierSet(metadata(name).get("Requires-Python") or "")
        assert asked.contains("3.11.2"), f"{name}=={lock[name]} asks for Python {asked}"


def test_conda_users_get_the_lock_and_no_pins_of_their_own(environment):
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (by_pip,) = [entry["pip"] for entry in environment["dependencies"] if not isinstance(entry, str)]
    assert [entry.partition("=")[0] for entry in plain] == ["python", "pip"]
    assert "=" not in plain[1]
    # pip reads these as a requirements file, where --no-deps and the like are no options
    assert by_pip == ["-r requirements.lock", "-e ."]


def test_condas_python_is_one_that_the_package_takes(environment):
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(python.partition("=")[2].strip("=") + ".0")


def test_make_installs_the_lock_and_then_the_package_without_asking_for_more():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--requirement requirements.lock" in makefile
    assert re.search(r"pip install .*--no-deps .*--editable \.", makefile)


def test_ruff_is_the_one_that_pre_commit_runs(lock):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}, "a hook of another repository has a version of its own"
    entries = [hook["entry"].split()[0] for repo in hooks for hook in repo["hooks"]]
    assert {canonicalize_name(entry) for entry in entries} <= set(lock)
