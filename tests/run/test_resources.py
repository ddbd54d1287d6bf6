"""What stages declare that they need: merged with the defaults, and wrong names and amounts are one line."""

from pathlib import Path

import pytest

from tokenarium.errors import TokenariumError
from tokenarium.run.resources import Resources, resources_of
from tokenarium.study.parameters import load_params, project_root

NAMED = {"data": {"words": {}}, "models": {"vit": {}}, "papers": {"tiny": {}}, "arenas": {"toys": {}}}


def resources(section, stage="paper@tiny"):
    return resources_of(NAMED | {"resources": section}, stage)


def test_without_the_section_there_are_defaults():
    assert resources_of(NAMED, "paper@tiny") == Resources(cpus=1, memory_gb=3, gpu_memory_gb=0)
    assert resources(None) == resources({"stages": None, "defaults": None}) == Resources()


def test_a_stage_adds_to_the_defaults():
    section = {
        "defaults": {"cpus": 2, "memory_gb": 4},
        "stages": {"paper@tiny": {"memory_gb": 8, "gpu_memory_gb": 1.5}},
    }
    assert resources(section) == Resources(2, 8, 1.5)
    assert resources(section, "model@vit") == Resources(2, 4, 0)


@pytest.mark.parametrize("stage", ["data@words", "model@vit", "paper@tiny", "verdict@tiny", "arena@toys", "report"])
def test_every_stage_of_the_pipeline_has_a_name(stage):
    assert resources({"stages": {stage: {"cpus": 0.5}}}, stage).cpus == 0.5


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"stage": {}}, "resources has an unknown name 'stage'; did you mean stages?"),
        ({"stages": {"paper@tini": {}}}, "'paper@tini'; did you mean paper@tiny"),
        ({"stages": {"paper@tiny": {"gpu_memory": 1}}}, "'gpu_memory'; did you mean gpu_memory_gb"),
        ({"defaults": {"cpu": 1}}, "resources.defaults has an unknown name 'cpu'; did you mean cpus?"),
        ({"defaults": 3}, "resources.defaults must be a mapping"),
        ([], None),
        (["x"], "resources must be a mapping"),
        ({"defaults": {"cpus": 0}}, "resources.defaults.cpus must be a positive number, got 0"),
        ({"defaults": {"memory_gb": -1}}, "resources.defaults.memory_gb must be"),
        ({"stages": {"report": {"memory_gb": "8 GB"}}}, "resources.stages.report.memory_gb must be .* got '8 GB'"),
        ({"defaults": {"memory_gb": True}}, "got True"),
        ({"defaults": {"memory_gb": float("nan")}}, "got nan"),
        ({"defaults": {"gpu_memory_gb": float("inf")}}, "got inf"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_place(section, message):
    if message is None:
        assert resources(section) == Resources()
        return
    with pytest.raises(TokenariumError) as error:
        resources(section, "model@vit")  # also when another stage is asked for
    assert "\n" not in str(error.value)
    assert error.match(message)


def test_every_study_that_reads_checkpoints_at_profile_gpu_declares_gpu_memory():
    params = load_params(project_root(Path(__file__).parent))
    for slug, entry in params["papers"].items():
        if any(read.startswith("models/") for read in entry["reads"]):
            assert resources_of(params, f"paper@{slug}").gpu_memory_gb > 0, slug
