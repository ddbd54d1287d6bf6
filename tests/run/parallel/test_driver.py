"""A parallel run leaves a checkout as plain `dvc repro` does, and comes back from what goes wrong."""

import pytest
from dvc_projects import change, contents, plain_repro, ran, random_project, status

from tokenarium.run.parallel import driver


def agree(plain, parallel):
    """Both trees ran the same stages and are the same, dvc.lock and its order included."""
    assert ran(parallel) == ran(plain)
    assert contents(parallel) == contents(plain)
    assert status(parallel) == status(plain)


@pytest.mark.parametrize("seed", range(4))
def test_a_random_graph_ends_as_after_plain_dvc_repro(tmp_path, threads, view, seed):
    plain, parallel = (random_project(tmp_path / name, seed) for name in ("plain", "parallel"))
    for step in range(4):
        plain_repro(plain)
        driver.run(parallel, (), 3, executor=threads(), view=view)
        agree(plain, parallel)
        for tree in (plain, parallel):
            change(tree, 10 * seed + step)
