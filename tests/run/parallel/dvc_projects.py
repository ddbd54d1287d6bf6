"""Random DVC projects of small shell commands, and what DVC says of them."""

import contextlib
import random
import subprocess
from pathlib import Path

import yaml


def write_project(tree, stages, params=None, files=None):
    """A DVC project in git, whose `stages` are written to dvc.yaml as they are."""
    tree.mkdir(parents=True)
    (tree / ".dvc").mkdir()
    (tree / ".dvc" / "config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (tree / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (tree / ".gitignore").write_text("/.tokenarium/\n/ran\n")
    (tree / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (tree / "params.yaml").write_text(yaml.safe_dump(params or {"unused": 1}, sort_keys=False))
    for name, text in (files or {}).items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
    return tree


def random_project(tree, seed, size=9):
    """Stages of every sort that DVC knows here: foreach, folders, metrics, plots, parameters, flags, several commands.

    A command appends its stage to `ran`. Some stages write the same whatever they read, so those after them can stay.
    """
    rng = random.Random(seed)
    params = {f"p{i}": rng.randrange(9) for i in range(size)}
    files = {f"src/{i}.txt": f"{i}\n" * rng.randrange(1, 9) for i in range(3)}
    stages, made = {}, []

    def body(name, reads, out, folder, constant):
        """Commands that write the file or folder `out` from all that is read."""
        gather = "echo same" if constant else f"find {' '.join(reads)} -type f | LC_ALL=C sort | xargs cat | cksum"
        target = f"{out}/part" if folder else out
        place = f"rm -rf {out} && mkdir -p {out}" if folder else f"mkdir -p {Path(out).parent}"
        return [f"echo {name} >> ran", f"{place} && {{ {gather}; echo {name}; }} > {target}"]

    for i in range(size):
        name = f"s{i}"
        reads = rng.sample(sorted(files), rng.randrange(1, 3)) + rng.sample(made, min(len(made), rng.randrange(3)))
        sort = rng.choice(["file", "folder", "metrics", "plots", "several", "each"])
        out, folder = f"out/{name}", sort == "folder"
        constant = rng.random() < 0.25
        flags = rng.choice([{}, {"persist": True}, {"cache": False}, {"cache": False, "persist": True}])
        stage = {"deps": reads}
        if rng.random() < 0.4:
            stage["params"] = [f"p{i}"]
        if rng.random() < 0.1:
            stage["always_changed"] = True
        if sort == "each":
            commands = body(f"{name}@${{key}}", reads, f"{out}-${{key}}", False, constant)
            stages[name] = {
                "foreach": {"a": {"x": 1}, "b": {"x": 2}},
                "do": {"cmd": " && ".join([*commands, "echo ${item.x} > /dev/null"]), **stage},
            }
            stages[name]["do"]["outs"] = [{f"{out}-${{key}}": flags}]
            made += [f"{out}-a", f"{out}-b"]
            continue
        if sort in ("metrics", "plots"):
            out += ".json"
            count = f"$(cat {' '.join(sorted(set(reads) & set(files)))} | wc -c)"
            stage[sort] = [{out: flags}]
            number = f'{{"n": {"0" if constant else "%d"}}}'
            shown = number if sort == "metrics" else f"[{number}]"
            stage["cmd"] = [f"echo {name} >> ran", f"mkdir -p out && printf '{shown}' {count} > {out}"]
        else:
            stage["cmd"] = body(name, reads, out, folder, constant)
            stage["outs"] = [{out: flags}]
            if sort == "several":
                stage["outs"].append({f"{out}-more": {"cache": False}})
                stage["cmd"].append(f"echo more > {out}-more")
        made.append(out)
        stages[name] = stage
    return write_project(tree, stages, params, files)


def change(tree, seed):
    """One thing that a person may do to a project: edit a source or a parameter, or spoil, or lose, an output."""
    rng = random.Random(seed)
    outs = sorted(path for path in (tree / "out").rglob("*") if path.is_file() and path.name != ".gitignore")
    what = rng.choice(["source", "source", "params", "spoil", "lose"])
    if what == "source":
        with (tree / f"src/{rng.randrange(3)}.txt").open("a") as file:
            file.write("more\n")
    elif what == "params":
        params = yaml.safe_load((tree / "params.yaml").read_text())
        (tree / "params.yaml").write_text(yaml.safe_dump({name: value + 1 for name, value in params.items()}))
    else:
        path = outs[rng.randrange(len(outs))]
        path.unlink()
        if what == "spoil":
            path.write_text("spoilt\n")
    return what


def plain_repro(tree):
    """DVC's own run."""
    from dvc.repo import Repo

    with contextlib.chdir(tree), Repo(str(tree)) as repo:
        repo.reproduce(on_error="keep-going")


def status(tree):
    from dvc.repo import Repo

    with contextlib.chdir(tree), Repo(str(tree)) as repo:
        return repo.status()


def contents(tree):
    """Every file but DVC's, git's and ours, with dvc.lock, by name.

    The lines of a .gitignore are sorted: DVC adds one when it commits an output, in the order of commits.
    """
    names = {path.relative_to(tree).as_posix(): path for path in tree.rglob("*") if path.is_file()}
    own = (".git/", ".dvc/", ".tokenarium/")
    found = {name: path.read_bytes() for name, path in names.items() if name != "ran" and not name.startswith(own)}
    return {name: sorted(told.split()) if name.endswith(".gitignore") else told for name, told in found.items()}


def ran(tree):
    """What ran in `tree` since the last look, sorted."""
    path = tree / "ran"
    lines = sorted(path.read_text().split()) if path.exists() else []
    path.unlink(missing_ok=True)
    return lines
