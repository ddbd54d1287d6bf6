"""The pipeline's wiring: `reads` names what a notebook imports, and DVC runs again what changed and nothing else.

DVC runs here in copies of the repository whose `tokenarium` is a stand-in: at once it writes small files that depend on
what the stage may read, and keeps a list of its calls.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tokenarium.errors import TokenariumError
from tokenarium.run import pipeline
from tokenarium.study.parameters import load_params, project_root

ROOT = project_root(Path(__file__).parent)
PARAMS = load_params(ROOT)
PAPERS = sorted(PARAMS["papers"])
EXPERIMENTS = sorted(PARAMS["experiments"])
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

# Code that decides how a run is done and shown, not what is measured: a change of it makes no result stale.
PLUMBING = (
    "lib/tokenarium/__init__.py",
    "lib/tokenarium/data",  # what it makes is a dependency, data/<name>
    "lib/tokenarium/errors.py",
    "lib/tokenarium/files.py",
    "lib/tokenarium/markdown.py",
    "lib/tokenarium/models/__init__.py",  # chooses the recipe in `tokenarium model`
    "lib/tokenarium/report",
    "lib/tokenarium/run",
    "lib/tokenarium/study",
    "lib/tokenarium/words.py",
)
MEASURING = ("lib/tokenarium/study/figures.py", "lib/tokenarium/data/scenes.py")  # scenes are drawn, not fetched


# What a notebook imports


def imported(tree):
    """Names of modules, or of things in modules, that the code of `tree` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(name):
    """The files below lib/ that Python executes to import `name`, a module or a thing in one."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        place = Path("lib", *parts[:length])
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if (ROOT / path).is_file():
                yield path.as_posix()


def holds_code(path):
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def is_plumbing(path):
    return path not in MEASURING and any(covers(each, path) for each in PLUMBING)


def notebook_code(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def modules_of(path):
    """What a notebook or module imports, directly and through its imports: files that measure, names of data sets."""
    code = notebook_code(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    waiting = list(imported(ast.parse(code)))
    seen, data = set(), set()
    while waiting:
        name = waiting.pop()
        if name.startswith("tokenarium.data."):
            data |= {key for key, entry in PARAMS["data"].items() if entry["module"] == name.split(".")[2]}
        for path in files_of(name):
            if path not in seen and not is_plumbing(path):
                seen.add(path)
                waiting += imported(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    return {path for path in seen if holds_code(path)}, data


def covers(entry, path):
    return path == entry or path.startswith(f"{entry}/")


def paper_notebook(slug):
    return ROOT / "notebooks" / PARAMS["papers"][slug]["family"] / f"{slug}.ipynb"


def experiment_module(entry):
    return f"lib/tokenarium/methods/{entry['family']}/experiments/{entry['module']}.py"


def experiment_path(name):
    return f"experiments/{PARAMS['experiments'][name]['paper']}/{name}"


def test_imports_are_followed_through_packages_and_modules():
    files, data = modules_of(paper_notebook("pitome"))
    assert "lib/tokenarium/methods/vision/tome.py" in files  # named by the notebook
    assert "lib/tokenarium/methods/vision/harness/runner.py" in files  # by a package's __init__
    assert "lib/tokenarium/measure/bootstrap.py" in files  # by the harness too
    assert "lib/tokenarium/methods/vision/token_transforming.py" not in files
    assert not any(path.startswith(("lib/tokenarium/run", "lib/tokenarium/data")) for path in files)
    assert data == {"fashion-mnist", "debian-reference"}


@pytest.mark.parametrize("slug", PAPERS)
def test_a_paper_reads_every_module_that_its_notebook_imports(slug):
    reads = PARAMS["papers"][slug]["reads"]
    files, _ = modules_of(paper_notebook(slug))
    assert [path for path in sorted(files) if not any(covers(entry, path) for entry in reads)] == []


@pytest.mark.parametrize("slug", PAPERS)
def test_a_paper_reads_nothing_that_its_notebook_does_not_import(slug):
    reads = PARAMS["papers"][slug]["reads"]
    files, data = modules_of(paper_notebook(slug))
    for entry in set(reads):
        if entry.startswith("lib/"):
            assert (ROOT / entry).exists()
            assert any(covers(entry, path) for path in files), entry
            assert not [other for other in reads if other != entry and covers(other, entry)], entry
    assert {entry for entry in reads if entry.startswith("data/")} == {f"data/{name}" for name in data}
    opened = re.findall(r"study\.experiment\(\"(.+?)\"\)", notebook_code(paper_notebook(slug)))
    assert {entry for entry in reads if entry.startswith("experiments/")} == set(map(experiment_path, opened))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_reads_every_module_and_data_set_that_it_imports(name):
    entry = PARAMS["experiments"][name]
    files, data = modules_of(ROOT / experiment_module(entry))
    reads = entry["reads"]
    assert [path for path in sorted(files) if not any(covers(each, path) for each in reads)] == []
    assert data <= {each.removeprefix("data/") for each in reads}
    for each in reads:
        assert not each.startswith("lib/") or any(covers(each, path) for path in files), each


@pytest.mark.parametrize("slug", PAPERS)
def test_what_a_paper_reads_besides_code_is_made_by_a_stage(slug):
    made = {f"data/{name}" for name in PARAMS["data"]} | {entry["path"] for entry in PARAMS["models"].values()}
    made |= set(map(experiment_path, EXPERIMENTS))
    for entry in PARAMS["papers"][slug]["reads"]:
        assert entry.startswith("lib/") or any(covers(entry, path) for path in made), entry


KINDS = (("paper", "papers"), ("arena", "arenas"), ("model", "models"), ("experiment", "experiments"))


@pytest.mark.parametrize(("kind", "section"), KINDS)
def test_every_entry_fills_the_places_of_its_stage(kind, section):
    places = [dep for dep in STAGES[kind]["do"]["deps"] if dep.startswith("${item.reads[")]
    assert places == [f"${{item.reads[{index}]}}" for index in range(len(places))]
    for name, entry in PARAMS[section].items():
        reads = entry["reads"]
        assert len(reads) == len(places), name
        assert len(set(reads)) == len(reads) - reads.count(reads[-1]) + 1, f"{name} repeats more than its last entry"


def test_a_model_reads_its_recipe():
    from tokenarium.models import RECIPES

    for name, entry in PARAMS["models"].items():
        assert f"lib/tokenarium/models/{RECIPES[entry['recipe']]}.py" in entry["reads"], name


@pytest.mark.parametrize("family", sorted(PARAMS["arenas"]))
def test_an_arena_depends_on_every_module_that_its_notebook_imports(family):
    deps = PARAMS["arenas"][family]["reads"]
    files, _ = modules_of(ROOT / "notebooks" / "arena" / f"{family}.ipynb")
    # An arena reads logits and loads no model: the harness only names their type.
    files = {path for path in files if not path.startswith("lib/tokenarium/models/")}
    assert [path for path in sorted(files) if not any(covers(dep, path) for dep in deps)] == []


# A project that runs in seconds

STAND_IN = """\
import hashlib, os, sys
from pathlib import Path
import yaml

command, name = (sys.argv[1:] + [""])[:2]
calls = Path(".tokenarium", "calls")
calls.parent.mkdir(exist_ok=True)
with calls.open("a") as file:
    print(command, name, file=file)
if Path(".tokenarium", "broken").exists():
    sys.exit("broken")
params = yaml.safe_load(Path("params.yaml").read_text())
profile = params["profile"]


def digest(*places):
    '''Of all files in these places; lines of comment do not count.'''
    lines = []
    for place in map(Path, places):
        for path in sorted(path for path in [place, *place.rglob("*")] if path.is_file() and path.suffix != ".pyc"):
            lines += [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return hashlib.sha256("\\n".join(lines).encode()).hexdigest()


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


if command == "data":
    write(f"data/{name}/data.txt", name)
elif command == "model":
    entry = params["models"][name]
    write(f"{entry['path']}/model.txt", digest(*entry["reads"]) + str(params["recipes"][entry["recipe"]][profile]))
elif command == "experiment":
    entry = params["experiments"][name]
    module = f"lib/tokenarium/methods/{entry['family']}/experiments/{entry['module']}.py"
    made = digest(module, *entry["reads"]) + str((entry[profile], params["families"][entry["family"]][profile]))
    write(f"experiments/{entry['paper']}/{name}/parts.txt", made)
elif command == "study":
    arena = name.startswith("arena/")
    if arena:
        made = digest(*params["arenas"][name[6:]]["reads"])
    else:
        entry = params["papers"][name]
        stem = f"notebooks/{entry['family']}/{name}"
        shared = params["families"][entry["family"]][profile]
        made = digest(*entry["reads"], f"{stem}.ipynb", f"{stem}.claims.yaml") + str((entry[profile], shared))
        write(f"evaluations/{entry['family']}/{name}/results.txt", made)
        write(f"reports/{name}/tensors/tensors.txt", made)
    number = int(made[:4], 16)
    write(f"reports/{name}/notebook.ipynb", os.urandom(8).hex())
    write(f"reports/{name}/provenance.json", '"' + os.urandom(8).hex() + '"')
    write(f"reports/{name}/evidence.json", f'"{profile} {made}"')
    write(f"reports/{name}/metrics.json", f'{{"gain": {{"value": {number}, "low": 0, "high": 70000}}}}')
    write(f"reports/{name}/tables/table.csv", f"gain\\n{number}\\n")
    for kind in ("svg", "png"):
        write(f"reports/{name}/figures/figure.{kind}", f"<svg xmlns='http://www.w3.org/2000/svg'>{number}</svg>")
elif command == "verdict":
    claims = "" if name.startswith("arena/") else f"notebooks/{params['papers'][name]['family']}/{name}.claims.yaml"
    write(f"verdicts/{name.replace('/', '-')}.json", digest(f"reports/{name}/evidence.json", *filter(None, [claims])))
elif command == "report":
    write("reports/README.md", digest("verdicts"))
    write("reports/site/index.html", digest("verdicts"))
"""
ARENAS = sorted(PARAMS["arenas"])
ARENA_CALLS = {f"{command} arena/{name}" for name in ARENAS for command in ("study", "verdict")}
VISION_ARENA = {"study arena/vision", "verdict arena/vision"}
ALL_CALLS = (
    {f"data {name}" for name in PARAMS["data"]}
    | {f"model {name}" for name in PARAMS["models"]}
    | {f"experiment {name}" for name in EXPERIMENTS}
    | {f"{command} {slug}" for slug in PAPERS for command in ("study", "verdict")}
    | ARENA_CALLS
    | {"report "}
)


@pytest.fixture(scope="module", autouse=True)
def stand_in(tmp_path_factory):
    """`tokenarium` is the stand-in for every DVC that this module runs, and nothing outside of the test is touched."""
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "tokenarium.py").write_text(STAND_IN)
    python = sys.executable
    for name, arguments in (("python", ""), ("tokenarium", f" {folder / 'tokenarium.py'}")):
        (folder / name).write_text(f'#!/bin/sh\nexec {python}{arguments} "$@"\n')
        (folder / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(folder / "python"))  # pipeline.dvc puts its folder first on the path
        for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Tester")
            patch.setenv(f"GIT_{role}_EMAIL", "tester@localhost")
        yield


def git(tree, *arguments):
    return subprocess.run(["git", *arguments], cwd=tree, check=True, capture_output=True, text=True).stdout


def commit(tree):
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "A step")


def calls(tree):
    """What DVC ran in `tree` since the last look, in order."""
    path = tree / ".tokenarium" / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def reproduce(tree):
    """The set of commands that `dvc repro` runs; each at most once."""
    calls(tree)
    pipeline.dvc(tree, "repro", capture=True)
    made = calls(tree)
    assert len(set(made)) == len(made)
    return set(made)


def snapshot(tree):
    """Everything but git's and DVC's own files, by name."""
    paths = (path for path in tree.rglob("*") if path.is_file())
    names = {path.relative_to(tree).as_posix(): path for path in paths}
    own = (".git/", ".dvc/", ".tokenarium/")
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(own)}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The repository's sources, reproduced once from nothing and committed with their results."""
    tree = tmp_path_factory.mktemp("first") / "tree"
    for name in pipeline.source_files(ROOT):
        if name.split("/")[0] in (".dvc", "params.yaml", "dvc.yaml", ".dvcignore", ".gitignore", "lib", "notebooks"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    git(tree.parent, "init", "--quiet", str(tree))
    pipeline.dvc(tree, "remote", "add", "--default", "storage", str(tree.parent / "storage"), capture=True)
    commit(tree)
    made = reproduce(tree)
    commit(tree)
    assert made == ALL_CALLS
    return tree


@pytest.fixture
def tree(first, tmp_path):
    """A copy of `first` to change, cache included."""
    return Path(shutil.copytree(first, tmp_path / "tree", symlinks=True))


def edit(path, old=None, new=None):
    """Replace the one `old` by `new`; add a line of code without them."""
    text = path.read_text(encoding="utf-8")
    if old is None:
        text += "\nCHANGED = True\n"
    else:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def change_param(tree, value, *keys):
    """Set one value of params.yaml."""
    path = tree / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    entry = params
    for key in keys[:-1]:
        entry = entry[key]
    assert entry[keys[-1]] != value
    entry[keys[-1]] = value

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data):
            return True

    path.write_text(yaml.dump(params, Dumper=Plain, sort_keys=False), encoding="utf-8")


def test_dvc_knows_every_stage(first):
    listed = pipeline.dvc(first, "stage", "list", "--name-only", capture=True).split()
    assert set(listed) == {
        *(f"data@{name}" for name in PARAMS["data"]),
        *(f"model@{name}" for name in PARAMS["models"]),
        *(f"experiment@{name}" for name in EXPERIMENTS),
        *(f"{kind}@{slug}" for kind in ("paper", "verdict") for slug in PAPERS),
        *(f"arena@{family}" for family in ARENAS),
        "report",
    }
    assert {"paper@pitome", "model@vit-fmnist-seed0", "arena@vision"} <= set(listed)


def test_results_to_read_are_in_git_and_the_rest_in_the_cache(first):
    tracked = git(first, "ls-files").splitlines()
    assert git(first, "status", "--porcelain") == ""
    for slug in PAPERS:
        for name in ("metrics.json", "evidence.json", "provenance.json", "tables/table.csv", "figures/figure.svg"):
            assert f"reports/{slug}/{name}" in tracked
        assert f"verdicts/{slug}.json" in tracked
    assert {"reports/README.md", "dvc.lock"} <= set(tracked)
    cached = ("data/", "models/", "experiments/", "evaluations/", "reports/site/")
    assert not [name for name in tracked if name.startswith(cached) or "/tensors/" in name]
    assert not [name for name in tracked if name.startswith("reports/") and name.endswith(".ipynb")]


def test_stages_run_after_what_they_read(first, tree):
    for name in ("data", "models", "experiments", "evaluations", "reports", "verdicts", "dvc.lock", ".dvc/cache"):
        path = tree / name
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
    calls(tree)
    pipeline.dvc(tree, "repro", capture=True)
    order = {call: place for place, call in enumerate(calls(tree))}
    for slug in PAPERS:
        for call in (f"data {name}" for name in PARAMS["data"] if f"data/{name}" in PARAMS["papers"][slug]["reads"]):
            assert order[call] < order[f"study {slug}"]
        for name, entry in PARAMS["models"].items():
            if any(covers(read, entry["path"]) for read in PARAMS["papers"][slug]["reads"]):
                assert order[f"model {name}"] < order[f"study {slug}"]
        for name in EXPERIMENTS:
            if experiment_path(name) in PARAMS["papers"][slug]["reads"]:
                assert order[f"experiment {name}"] < order[f"study {slug}"]
        assert order[f"study {slug}"] < order[f"verdict {slug}"] < order["report "]
        if PARAMS["papers"][slug]["family"] == "vision":
            assert order[f"study {slug}"] < order["study arena/vision"]
    for name in ARENAS:
        assert order[f"study arena/{name}"] < order[f"verdict arena/{name}"] < order["report "]
    assert order["study turkish-standards"] < order["study arena/tokenizers"]  # which reads one of its tables


def test_nothing_changed_is_up_to_date(tree):
    before = snapshot(tree)
    assert reproduce(tree) == set()
    assert snapshot(tree) == before


def test_a_changed_method_reruns_its_paper_the_arena_and_the_report(tree):
    edit(tree / "lib/tokenarium/methods/vision/token_transforming.py")
    assert reproduce(tree) == {"study token-transforming", "verdict token-transforming", *VISION_ARENA, "report "}
    assert reproduce(tree) == set()


def test_a_method_that_two_papers_read_reruns_both(tree):
    edit(tree / "lib/tokenarium/methods/vision/pitome.py")
    both = {f"{command} {slug}" for slug in ("pitome", "token-transforming") for command in ("study", "verdict")}
    assert reproduce(tree) == {*both, *VISION_ARENA, "report "}


def test_a_changed_parameter_reruns_its_paper_only(tree):
    change_param(tree, 3, "papers", "pitome", "cpu", "trace_images")
    assert reproduce(tree) == {"study pitome", "verdict pitome", *VISION_ARENA, "report "}


def test_what_belongs_to_another_profile_reruns_nothing(tree):
    change_param(tree, 1, "papers", "pitome", "smoke", "trace_images")
    change_param(tree, 8, "families", "vision", "smoke", "images")
    change_param(tree, 100, "recipes", "vit-fmnist", "smoke", "test_images")
    assert reproduce(tree) == set()


def test_a_changed_recipe_reruns_its_models_and_all_that_follows(tree):
    change_param(tree, 7, "recipes", "vit-fmnist", "cpu", "coarse", "passes")
    models = {f"model {name}" for name, entry in PARAMS["models"].items() if entry["recipe"] == "vit-fmnist"}
    vision = [slug for slug in PAPERS if PARAMS["papers"][slug]["family"] == "vision"]
    studies = {f"{command} {slug}" for slug in (*vision, "arena/vision") for command in ("study", "verdict")}
    assert reproduce(tree) == {*models, *studies, "report "}


def test_changed_claims_rerun_their_paper_and_verdict(tree):
    with (tree / "notebooks/vision/token-transforming.claims.yaml").open("a") as file:
        file.write("another: claim\n")
    made = reproduce(tree)
    assert {"study token-transforming", "verdict token-transforming", "report "} <= made
    assert made <= {"study token-transforming", "verdict token-transforming", *VISION_ARENA, "report "}


def test_an_edit_that_changes_no_result_stops_at_the_paper(tree):
    edit(tree / "lib/tokenarium/methods/vision/token_transforming.py", "import torch\n", "# a comment\nimport torch\n")
    assert reproduce(tree) == {"study token-transforming"}


def test_a_changed_notebook_is_shown_even_when_no_number_changes(tree):
    with (tree / "notebooks/vision/pitome.ipynb").open("a") as file:
        file.write("# a remark\n")
    assert reproduce(tree) == {"study pitome", "report "}


def test_a_changed_template_rewrites_the_report_only(tree):
    edit(tree / "lib/tokenarium/report/sphinx/static/site.css", ".made-with {", ".made-with  {")
    assert reproduce(tree) == {"report "}


def test_what_python_leaves_beside_the_code_is_no_change(tree):
    for folder in ("measure", "models", "methods/vision/harness", "report"):
        cache = tree / "lib/tokenarium" / folder / "__pycache__"
        cache.mkdir(exist_ok=True)
        (cache / "x.cpython-311.pyc").write_bytes(b"\x00")
    assert reproduce(tree) == set()


def test_what_a_failed_save_leaves_beside_a_model_is_no_change(tree):
    left = tree / "models/vit-fmnist/.seed1.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert reproduce(tree) == set()


def test_a_failed_run_leaves_the_last_good_results(tree):
    before = snapshot(tree)
    path = tree / "lib/tokenarium/methods/vision/token_transforming.py"
    source = path.read_bytes()
    edit(path)
    (tree / ".tokenarium/broken").touch()
    with pytest.raises(TokenariumError, match="dvc repro stopped"):
        pipeline.dvc(tree, "repro", capture=True)
    assert calls(tree) == ["study token-transforming"]
    path.write_bytes(source)
    assert snapshot(tree) == before
    (tree / ".tokenarium/broken").unlink()
    assert reproduce(tree) == set()


def test_one_paper_brings_its_verdict_and_the_report_and_no_other_paper(tree):
    edit(tree / "lib/tokenarium/methods/vision/pitome.py")
    calls(tree)
    assert pipeline.repro(tree, "pitome") == tree
    assert set(calls(tree)) == {"study pitome", "verdict pitome", "report "}


def test_papers_and_stages_can_be_asked_for_together(tree):
    edit(tree / "lib/tokenarium/methods/vision/pitome.py")
    edit(tree / "lib/tokenarium/models/minilm.py")
    calls(tree)
    pipeline.repro(tree, ["model@minilm-l6", "pitome"])
    assert set(calls(tree)) == {"model minilm-l6", "study pitome", "verdict pitome", "report "}


def test_a_parallel_run_of_one_paper_asks_for_the_same_stages_at_any_profile(tree, monkeypatch):
    from tokenarium.run.parallel import driver

    asked = {}
    monkeypatch.setattr(
        driver, "run", lambda tree, stages, jobs, **rest: asked.update({tree.name: (stages, jobs, rest)})
    )
    pipeline.repro_parallel(tree, ["pitome", "model@minilm-l6"], None, 2)
    pipeline.repro_parallel(tree, None, "gpu", 3, address="a:1")
    stages, jobs, rest = asked["tree"]
    assert (stages, jobs, rest["alone"]) == (("verdict@pitome", "model@minilm-l6"), 2, ("report",))
    assert rest["needs"]("paper@pitome").gpu_memory_gb == 0
    assert rest["environment"]["PATH"].startswith(str(Path(sys.executable).parent))
    stages, jobs, rest = asked["gpu"]
    assert (stages, jobs, rest["alone"], rest["address"]) == ((), 3, (), "a:1")
    assert rest["needs"]("paper@pitome").gpu_memory_gb == PARAMS["resources"]["stages"]["paper@pitome"]["gpu_memory_gb"]
    with pytest.raises(TokenariumError, match="no paper 'pitomee'; did you mean pitome"):
        pipeline.repro_parallel(tree, ["pitomee"], None, 2)


def test_a_parallel_run_in_a_copy_leaves_it_as_a_plain_one_would(tree, monkeypatch):
    """Ray's part is played by threads: what is tested is the pipeline, its stages and its copy."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "run" / "parallel")
    from thread_executor import Threads

    from tokenarium.run.parallel import driver

    monkeypatch.setattr(driver, "RayExecutor", lambda address: Threads())
    copy = pipeline.repro_parallel(tree, None, "smoke", 4)
    made = calls(copy)
    assert {call for call in ALL_CALLS if call.startswith(("study", "verdict", "report"))} <= set(made)
    assert len(set(made)) == len(made)
    assert json.loads(pipeline.dvc(copy, "status", "--json", capture=True)) == {}
    assert reproduce(copy) == set()


def test_an_unknown_paper_runs_nothing(tree):
    with pytest.raises(TokenariumError, match="no paper 'pitomee'; did you mean pitome"):
        pipeline.repro(tree, "pitomee", "smoke")
    assert calls(tree) == []
    assert not (tree / ".tokenarium/smoke").exists()


# A fresh clone


@pytest.fixture
def clone(tree, tmp_path):
    """What a stranger gets: the committed files, no cache; the remote is the one of `first`."""
    git(tmp_path, "clone", "--quiet", str(tree), str(tmp_path / "clone"))
    return tmp_path / "clone"


def test_a_fresh_clone_holds_up_to_date_results_without_running_anything(clone):
    assert not (clone / "models").exists()
    assert not (clone / ".dvc/cache").exists()
    before = snapshot(clone)
    pipeline.check(clone)
    assert snapshot(clone) == before
    assert calls(clone) == []


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("lib/tokenarium/methods/vision/token_transforming.py", "(paper@token-transforming)"),
        ("lib/tokenarium/report/pages.py", "(report)"),
        ("lib/tokenarium/data/fashion_mnist.py", "data@fashion-mnist"),
        ("reports/pitome/evidence.json", "(paper@pitome)"),
    ],
)
def test_a_clone_whose_code_or_results_changed_is_out_of_date(clone, changed, stale):
    edit(clone / changed)
    with pytest.raises(TokenariumError, match="results are out of date: run `dvc repro` and commit") as error:
        pipeline.check(clone)
    assert stale in str(error.value)
    assert "\n" not in str(error.value)
    assert calls(clone) == []


def test_a_remote_restores_models_notebooks_and_tensors_without_running_anything(tree, clone):
    pipeline.dvc(tree, "push", capture=True)
    pipeline.dvc(clone, "pull", capture=True)
    restored, original = snapshot(clone), snapshot(tree)
    assert {"models/vit-fmnist/seed0/model.txt", "models/minilm-l6/model.txt"} <= set(restored)
    assert {"reports/pitome/notebook.ipynb", "reports/pitome/tensors/tensors.txt"} <= set(restored)
    assert restored == original
    assert reproduce(clone) == set()


# What people use DVC for


def test_an_experiment_sets_a_parameter_and_reruns_its_paper(tree):
    calls(tree)
    pipeline.dvc(tree, "exp", "run", "--set-param", "papers.pitome.cpu.trace_images=3", capture=True)
    assert set(calls(tree)) == {"study pitome", "verdict pitome", *VISION_ARENA, "report "}
    params = load_params(tree)
    assert params["papers"]["pitome"]["cpu"]["trace_images"] == 3
    assert params["papers"]["pitome"]["smoke"] == PARAMS["papers"]["pitome"]["smoke"]
    assert params["papers"]["pitome"]["gpu"] == PARAMS["papers"]["pitome"]["gpu"]
    diff = json.loads(pipeline.dvc(tree, "params", "diff", "--json", capture=True))
    assert list(diff["params.yaml"]) == ["papers.pitome.cpu.trace_images"]
    assert diff["params.yaml"]["papers.pitome.cpu.trace_images"]["new"] == 3


def test_metrics_are_shown_and_compared(tree):
    shown = json.loads(pipeline.dvc(tree, "metrics", "show", "--json", capture=True))[""]["data"]
    assert set(shown) == {f"reports/{slug}/metrics.json" for slug in (*PAPERS, *(f"arena/{name}" for name in ARENAS))}
    gain = shown["reports/pitome/metrics.json"]["data"]["gain"]["value"]
    assert gain == json.loads((tree / "reports/pitome/metrics.json").read_text())["gain"]["value"]
    edit(tree / "lib/tokenarium/methods/vision/token_transforming.py")
    reproduce(tree)
    changed = json.loads(pipeline.dvc(tree, "metrics", "diff", "--json", capture=True))
    assert "reports/token-transforming/metrics.json" in changed
    assert "reports/pitome/metrics.json" not in changed


def test_plots_are_shown_as_a_page_that_git_ignores(tree):
    pipeline.dvc(tree, "plots", "show", capture=True)
    page = (tree / "dvc_plots/index.html").read_text(encoding="utf-8")
    for slug in (*PAPERS, *(f"arena/{name}" for name in ARENAS)):
        assert f"reports/{slug}/figures" in page.replace("_", "/")
    assert git(tree, "status", "--porcelain") == ""


# Another profile


def test_another_profile_runs_in_a_copy_and_leaves_the_results_alone(tree):
    before = snapshot(tree)
    copy = pipeline.repro(tree, profile="smoke")
    assert copy == tree / ".tokenarium/smoke"
    assert {call for call in ALL_CALLS if call.startswith(("study", "verdict", "report"))} <= set(calls(copy))
    assert calls(tree) == []
    assert snapshot(tree) == before
    assert load_params(tree)["profile"] == "cpu"
    assert load_params(copy) == load_params(tree) | {"profile": "smoke"}
    assert (copy / "reports/pitome/evidence.json").read_text().startswith('"smoke ')
    assert (tree / "reports/pitome/evidence.json").read_text().startswith('"cpu ')
    assert git(tree, "status", "--porcelain") == ""
    pipeline.repro(tree, profile="smoke")
    assert calls(copy) == []


def test_a_copy_follows_its_sources_and_keeps_its_results(tree):
    copy = pipeline.make_copy(tree, "smoke")
    (copy / "reports/pitome").mkdir(parents=True)
    (copy / "reports/pitome/metrics.json").write_text("{}")
    (copy / "models").mkdir()
    (copy / "models/weights").write_text("w")
    assert not (copy / "verdicts").exists()
    (tree / "lib/tokenarium/methods/vision/token_transforming.py").unlink()
    (tree / "lib/tokenarium/methods/vision/new.py").write_text("NEW = 1\n")
    edit(tree / "lib/tokenarium/methods/vision/pitome.py")
    pipeline.make_copy(tree, "smoke")
    methods = copy / "lib/tokenarium/methods/vision"
    assert not (methods / "token_transforming.py").exists()
    assert (methods / "new.py").read_text() == "NEW = 1\n"
    assert "CHANGED = True" in (methods / "pitome.py").read_text()
    assert (copy / "reports/pitome/metrics.json").read_text() == "{}"
    assert (copy / "models/weights").read_text() == "w"
    assert load_params(copy)["profile"] == "smoke"


def test_a_copy_has_the_same_code_and_nothing_that_git_ignores(tree):
    (tree / "lib/tokenarium/__pycache__").mkdir(exist_ok=True)
    (tree / "lib/tokenarium/__pycache__/x.pyc").write_bytes(b"\x00")
    (tree / ".venv").mkdir()
    (tree / ".venv/python").write_text("")
    copy = pipeline.make_copy(tree, "gpu")
    assert not (copy / ".venv").exists()
    assert not (copy / "lib/tokenarium/__pycache__").exists()
    for name in ("dvc.yaml", "lib/tokenarium/run/pipeline.py", "notebooks/vision/pitome.ipynb"):
        assert (copy / name).read_bytes() == (tree / name).read_bytes()


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(TokenariumError, match="is no git checkout: clone the repository"):
        pipeline.source_files(tmp_path)
