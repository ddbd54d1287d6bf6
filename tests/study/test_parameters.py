"""params.yaml: what is wrong with it is one line with the place and the mend, found before anything runs."""

import pytest

from tokenarium.errors import TokenariumError
from tokenarium.study.parameters import (
    SECTIONS,
    Parameters,
    find_entry,
    find_study,
    load_params,
    nearest,
    project_root,
    recipe_parameters,
    study_parameters,
)


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_project_is_found_from_any_folder_inside_it(project):
    inside = project / "notebooks" / "toys"
    assert project_root(inside) == project_root(project) == project.resolve()


def test_the_working_directory_is_where_the_search_starts(project, monkeypatch):
    monkeypatch.chdir(project / "notebooks")
    assert project_root() == project.resolve()


def test_a_folder_needs_both_files_to_be_a_project(project):
    (project / "dvc.yaml").unlink()
    with pytest.raises(TokenariumError, match=r"no params\.yaml and dvc.yaml at or above") as error:
        project_root(project)
    assert str(project) in one_line(error)


def test_good_parameters_come_back_as_they_stand(project):
    params = load_params(project)
    assert params["profile"] == "cpu"
    assert params["seeds"] == [3, 4]
    assert params["papers"]["tiny"]["cpu"] == {"alpha": 0.5, "tau": {"low": 1, "high": 2}}


def test_bad_yaml_is_named_with_its_line(project, change):
    change(project / "params.yaml", r"^models: \{\}$", "models: {")
    with pytest.raises(TokenariumError, match=r"params\.yaml line \d+ is not valid YAML") as error:
        load_params(project)
    line = int(one_line(error).split("line ")[1].split()[0])
    assert 4 <= line <= 6  # the parser notices in the line after the open brace


def test_a_file_that_is_no_text_is_named(project):
    (project / "params.yaml").write_bytes(b"profile: \xff\xfe\n")
    with pytest.raises(TokenariumError, match=r"cannot read .*params\.yaml"):
        load_params(project)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "cpu\n"])
def test_the_file_must_be_a_mapping(project, text):
    (project / "params.yaml").write_text(text)
    with pytest.raises(TokenariumError, match="must be a mapping with the sections profile, seeds"):
        load_params(project)


def test_an_unknown_section_gets_the_nearest_name(project, change):
    change(project / "params.yaml", "^papers:", "paper:")
    with pytest.raises(TokenariumError, match="unknown section 'paper'; did you mean papers"):
        load_params(project)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_needed(project, section):
    import yaml

    params = yaml.safe_load((project / "params.yaml").read_text())
    del params[section]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(TokenariumError, match=f"lacks the section '{section}'"):
        load_params(project)


def test_a_section_must_be_a_mapping_and_may_be_empty(project, change):
    change(project / "params.yaml", r"^models: \{\}$", "models:")
    assert load_params(project)["models"] == {}
    change(project / "params.yaml", r"^models:$", "models: [a]")
    with pytest.raises(TokenariumError, match="section 'models' must be a mapping"):
        load_params(project)


def test_an_unknown_profile_gets_the_nearest_name(project, change):
    change(project / "params.yaml", "^profile: cpu", "profile: smok")
    with pytest.raises(TokenariumError, match="unknown profile 'smok'; did you mean smoke"):
        load_params(project)


@pytest.mark.parametrize("seeds", ["[]", "3", "three", "[0, one]", "[0.5]", "[true]", "[-1]", "[1, 1]", ""])
def test_seeds_are_different_whole_numbers(project, change, seeds):
    change(project / "params.yaml", r"^seeds: .*$", f"seeds: {seeds}")
    with pytest.raises(TokenariumError, match="seeds must be a list of different whole numbers"):
        load_params(project)


def test_a_misspelt_key_of_one_profile_gets_the_nearest_of_the_others(project, change):
    change(project / "params.yaml", r"alpha: 0\.9", "alpah: 0.9")
    with pytest.raises(TokenariumError, match=r"papers\.tiny\.gpu has an unknown key 'alpah'; did you mean alpha"):
        load_params(project)


def test_a_key_that_one_profile_lacks_is_named(project, change):
    change(project / "params.yaml", r"gpu: \{<<: \*tiny, alpha: 0\.9\}", "gpu: {alpha: 1}")
    with pytest.raises(TokenariumError, match=r"papers\.tiny\.gpu lacks 'tau', which papers\.tiny\.cpu has"):
        load_params(project)


def test_a_profile_that_is_missing_is_named(project, change):
    change(project / "params.yaml", r"^    gpu: \*toys\n", "")
    with pytest.raises(TokenariumError, match=r"families\.toys lacks the profile section gpu"):
        load_params(project)


def test_an_entry_without_profiles_is_named(project, change):
    change(project / "params.yaml", r"^recipes: \{\}$", "recipes: {vit: 3}")
    with pytest.raises(TokenariumError, match=r"recipes\.vit must be a mapping with smoke, cpu, gpu"):
        load_params(project)


def test_an_unknown_family_gets_the_nearest_name(project, change):
    change(project / "params.yaml", r"(?<=tiny:\n)    family: toys", "    family: tois")
    with pytest.raises(TokenariumError, match=r"papers\.tiny has the unknown family 'tois'; did you mean toys"):
        load_params(project)


def test_unknown_names_get_the_nearest_or_all():
    assert nearest("pitom", ["tome", "pitome"]) == "did you mean pitome or tome?"
    assert nearest("xyz", {"b": 1, "a": 2}) == "known: a, b"
    assert nearest("xyz", []) == "known: none"


@pytest.mark.parametrize(
    ("section", "singular"), [("families", "family"), ("papers", "paper"), ("models", "model"), ("arenas", "arena")]
)
def test_entries_are_found_by_name(section, singular):
    params = {section: {"tiny": {"a": 1}}}
    assert find_entry(params, section, "tiny") == {"a": 1}
    with pytest.raises(TokenariumError, match=f"no {singular} 'tinny'; did you mean tiny"):
        find_entry(params, section, "tinny")


def test_a_slug_names_a_paper_or_an_arena(project):
    params = load_params(project)
    assert find_study(params, "tiny") == ("papers", "tiny")
    assert find_study(params, "arena/toys") == ("arenas", "toys")
    with pytest.raises(TokenariumError, match="no paper 'toys'"):
        find_study(params, "toys")
    with pytest.raises(TokenariumError, match="no arena 'toy'; did you mean toys"):
        find_study(params, "arena/toy")


def test_a_paper_has_its_familys_parameters_and_its_own_win(project):
    params = load_params(project)
    params["papers"]["tiny"]["cpu"]["images"] = 16
    parameters = study_parameters(params, "papers", "tiny", "cpu")
    assert parameters.to_dict() == {
        "images": 16,
        "budgets": [0.5],
        "resamples": 10,
        "alpha": 0.5,
        "tau": {"low": 1, "high": 2},
    }


def test_each_profile_has_its_own_values(project):
    params = load_params(project)
    by_profile = {profile: study_parameters(params, "papers", "tiny", profile) for profile in ("smoke", "cpu", "gpu")}
    assert {profile: each.alpha for profile, each in by_profile.items()} == {"smoke": 0.1, "cpu": 0.5, "gpu": 0.9}
    assert {profile: each.images for profile, each in by_profile.items()} == {"smoke": 4, "cpu": 8, "gpu": 4}
    with pytest.raises(TokenariumError, match="unknown profile 'gpus'; did you mean gpu"):
        study_parameters(params, "papers", "tiny", "gpus")


def test_overrides_replace_known_keys_only_and_leave_params_alone(project):
    params = load_params(project)
    assert study_parameters(params, "papers", "tiny", "cpu", {"images": 2}).images == 2
    assert study_parameters(params, "papers", "tiny", "cpu").images == 8
    with pytest.raises(TokenariumError, match="unknown key 'image'; did you mean images"):
        study_parameters(params, "papers", "tiny", "cpu", {"image": 2})


def test_a_recipe_has_the_parameters_of_one_profile():
    params = {"recipes": {"vit": {"smoke": {"steps": 1}, "cpu": {"steps": 10}}}}
    assert recipe_parameters(params, "vit", "cpu").steps == 10
    with pytest.raises(TokenariumError, match="no recipe 'vits'; did you mean vit"):
        recipe_parameters(params, "vits", "cpu")


@pytest.fixture
def parameters():
    return Parameters({"images": 8, "tau": {"low": 1}}, "parameters of tiny at cpu")


def test_parameters_are_attributes_and_a_mapping(parameters):
    assert parameters.images == parameters["images"] == 8
    assert parameters.tau.low == parameters["tau"]["low"] == 1
    assert dict(parameters) == {"images": 8, "tau": parameters.tau}
    assert list(parameters) == ["images", "tau"]
    assert len(parameters) == 2
    assert "images" in parameters
    assert "image" not in parameters
    assert parameters.get("images") == 8
    assert parameters.get("image", 1) == 1
    assert repr(parameters) == "parameters of tiny at cpu: images=8, tau={'low': 1}"


def test_an_unknown_parameter_gets_the_nearest_name_and_its_place(parameters):
    with pytest.raises(TokenariumError, match="parameters of tiny at cpu has no 'image'; did you mean images"):
        _ = parameters.image
    with pytest.raises(TokenariumError, match=r"parameters of tiny at cpu\.tau has no 'lo'; did you mean low"):
        parameters.tau["lo"]


def test_parameters_do_not_change(parameters):
    with pytest.raises(TypeError):
        parameters["images"] = 9
    with pytest.raises(AttributeError):
        parameters.images = 9
    plain = parameters.to_dict()
    plain["tau"]["low"] = 5
    assert parameters.tau.low == 1


def test_an_attribute_that_python_asks_for_is_just_missing(parameters):
    assert not hasattr(parameters, "_repr_html_")
