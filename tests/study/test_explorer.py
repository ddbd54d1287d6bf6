"""The explorer's Python side: what it knows of the tensors, what it serves, and what a page carries."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from tokenarium.errors import TokenariumError
from tokenarium.study.explorer import explore, explorer_html, export_html, write_page
from tokenarium.study.explorer.catalogue import (
    ROLES,
    check_state,
    describe,
    embed,
    first_state,
    grid,
    packed,
    part,
)

DTYPES = {"u1": "u1", "i1": "i1", "u2": "<u2", "i2": "<i2", "i4": "<i4", "f2": "<f2", "f4": "<f4", "f8": "<f8"}


@pytest.fixture
def dataset():
    generator = np.random.default_rng(0)
    source = generator.integers(0, 2, (3, 5, 17)).astype(np.float32)
    return xr.Dataset(
        {
            "energy": (("image", "token"), generator.normal(size=(3, 16)).astype(np.float32), {"units": "nats"}),
            "source": (("image", "kept", "patch"), source, {"long_name": "who became what"}),
            "size": (("image", "kept"), generator.integers(0, 1000, (3, 5))),
            "scores": (("layer", "word"), generator.normal(size=(2, 3))),
        },
        coords={"layer": [3, 6], "word": ["the", "cat", "<sat>"]},
    )


def runs_and_catalog(dataset, **options):
    runs = {"run": dataset}
    return runs, describe(runs, **options)


def decoded(spec):
    raw = zlib.decompress(base64.b64decode(spec["data"]))
    return np.frombuffer(raw, DTYPES[spec["dtype"]]).reshape(spec["shape"])


# Catalogue and states


@pytest.mark.parametrize(
    ("length", "found"),
    [(196, (14, 0)), (197, (14, 1)), (16, (4, 0)), (17, (4, 1)), (9, None), (50, (7, 1)), (0, None)],
)
def test_tokens_that_fill_a_square_have_a_grid(length, found):
    assert grid(length) == found


def test_the_catalogue_is_json_and_names_what_a_study_named(dataset):
    dataset = dataset.rename(kept="source.kept").assign(
        wide=(("kept",), np.zeros(7)), text=(("word",), ["a", "b", "c"])
    )
    _, catalog = runs_and_catalog(dataset)
    tensors = json.loads(json.dumps(catalog))["runs"]["run"]["tensors"]
    assert tensors["source"]["dims"] == ["image", "kept", "patch"]
    assert tensors["source"]["note"] == "who became what"
    assert tensors["energy"]["unit"] == "nats"
    assert tensors["scores"]["coords"] == {"layer": [3, 6], "word": ["the", "cat", "<sat>"]}
    assert "text" not in tensors  # words are no numbers


def test_a_tensor_is_first_shown_on_what_its_tokens_came_from(dataset):
    _, plain = runs_and_catalog(dataset)
    _, pictured = runs_and_catalog(dataset, pictures=np.zeros((3, 8, 8), np.uint8))
    assert plain["runs"]["run"]["tensors"]["source"]["roles"] == {"image": "slider", "kept": "rows", "patch": "columns"}
    assert pictured["runs"]["run"]["tensors"]["source"]["roles"]["patch"] == "tokens"
    assert plain["runs"]["run"]["tensors"]["scores"]["roles"] == {"layer": "slider", "word": "tokens"}
    assert plain["runs"]["run"]["tensors"]["size"]["roles"] == {"image": "rows", "kept": "columns"}
    assert first_state(plain)["tensor"] == "scores"
    assert first_state(pictured)["tensor"] == "energy"


def test_a_dataset_brings_its_own_pictures(dataset):
    pictures = np.linspace(0, 1, 3 * 4 * 4).reshape(3, 4, 4)
    _, catalog = runs_and_catalog(dataset.assign(pictures=(("image", "y", "x"), pictures)))
    found = catalog["runs"]["run"]["pictures"]
    assert (found["dim"], found["shape"]) == ("image", [3, 4, 4])
    grey = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(3, 4, 4)
    np.testing.assert_array_equal(grey, np.uint8(255 * pictures))


def test_a_part_of_a_state_is_completed(dataset):
    _, catalog = runs_and_catalog(dataset)
    state = check_state(catalog, {"tensor": "source", "roles": {"kept": "largest"}, "index": {"image": 2}})
    assert state["roles"] == {"image": "slider", "kept": "largest", "patch": "columns"}
    assert state["index"] == {"image": 2, "kept": 0, "patch": 0}
    assert check_state(catalog, state) == state
    assert check_state(catalog, {"tensor": "size", "minus": ["run", "size"]})["minus"] == '["run","size"]'


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"tensor": "enrgy"}, "no tensor 'enrgy'; did you mean energy"),
        ({"run": "ruin"}, "no run 'ruin'; did you mean run"),
        ({"tenser": "energy"}, "a state has no 'tenser'; did you mean tensor"),
        ({"tensor": "energy", "roles": {"tokn": "rows"}}, "energy has no dimension 'tokn'; did you mean token"),
        ({"tensor": "energy", "roles": {"token": "row"}}, "'row' is no role of 'token'; did you mean rows"),
        ({"tensor": "energy", "roles": {"token": "rows"}}, "only one dimension can be 'rows'"),
        ({"tensor": "energy", "index": {"image": 3}}, "'image' goes from 0 to 2, not to 3"),
        ({"minus": ["run", "x"]}, "no tensor 'x'"),
    ],
)
def test_a_wrong_state_is_one_clear_line(dataset, state, said):
    _, catalog = runs_and_catalog(dataset)
    with pytest.raises(TokenariumError, match=said):
        check_state(catalog, state)


def test_nothing_to_explore_is_a_clear_error():
    with pytest.raises(TokenariumError, match="nothing to explore in int"):
        explorer_html(3)
    with pytest.raises(TokenariumError, match="tensors has no tensors to explore"):
        explorer_html(xr.Dataset())


# Slices


@settings(deadline=None)
@given(data=st.data())
def test_a_served_part_is_the_numpy_slice(data):
    values = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    dataset = xr.Dataset({"x": (("a", "x.b", "c"), values)})
    chosen = data.draw(st.sets(st.sampled_from("abc")))
    index = {dim: data.draw(st.integers(0, values.shape["abc".index(dim)] - 1)) for dim in chosen}
    found = part({"run": dataset}, "run", "x", index)
    np.testing.assert_array_equal(found.values, values[tuple(index.get(dim, slice(None)) for dim in "abc")])
    assert found.dims == tuple(dim for dim in "abc" if dim not in index)


def test_what_is_too_large_or_not_there_is_not_served(dataset, monkeypatch):
    monkeypatch.setattr("tokenarium.study.explorer.catalogue.LARGEST_SLICE", 20)
    runs = {"run": dataset}
    assert part(runs, "run", "energy", {"image": 1}).shape == (16,)
    for arguments, said in (
        (("run", "energy", {}), "48 values of energy are more than 20: give another dimension a slider"),
        (("run", "energy", {"image": 3}), "no place 3 along 'image'"),
        (("run", "energy", {"head": 0}), "no place 0 along 'head'"),
        (("run", "enrgy", {}), "no tensor 'enrgy' in 'run'"),
    ):
        with pytest.raises(TokenariumError, match=said):
            part(runs, *arguments)


class Sent(list):
    """The messages of a widget without a front end."""

    def attach(self, widget, monkeypatch):
        monkeypatch.setattr(type(widget), "send", lambda _, content, buffers=None: self.append((content, buffers)))
        return self


def test_the_widget_answers_with_the_slice_or_the_reason(dataset, monkeypatch):
    widget = explore(dataset, tensor="source")
    sent = Sent().attach(widget, monkeypatch)
    question = {"id": "q1", "run": "tensors", "tensor": "source", "index": {"image": 1, "patch": 4}}
    widget._handle_custom_msg(question, [])
    widget._handle_custom_msg(question | {"id": "q2", "tensor": "size", "index": {}}, [])
    widget._handle_custom_msg(question | {"id": "q3", "tensor": "sizes"}, [])
    widget._handle_custom_msg({"odd": 1}, [])
    (one, bytes_one), (two, bytes_two), (three, _) = sent
    assert one == {"id": "q1", "shape": [5], "dims": ["kept"], "dtype": "f4"}
    np.testing.assert_array_equal(np.frombuffer(bytes_one[0], "<f4"), dataset.source.values[1, :, 4])
    assert (two["dtype"], two["shape"]) == ("f8", [3, 5])
    np.testing.assert_array_equal(np.frombuffer(bytes_two[0], "<f8").reshape(3, 5), dataset["size"].values)
    assert three == {"id": "q3", "error": "no tensor 'sizes' in 'tensors'"}


def test_the_state_goes_both_ways_and_stays_valid(dataset):
    widget = explore({"now": dataset, "before": dataset * 2}, run="before", tensor="source", index={"image": 2})
    assert set(widget.get_state()) >= {"catalog", "state", "_esm", "_css"}
    np.testing.assert_array_equal(widget.shown.values, 2 * dataset.source.values[2])
    widget.set_state({"state": widget.state | {"index": {"image": 1, "kept": 3}}})  # what the front end sends
    np.testing.assert_array_equal(widget.shown.values, 2 * dataset.source.values[1])
    widget.state = {"tensor": "energy", "run": "now"}
    assert widget.shown.dims == ("token",) or widget.shown.dims == ("image", "token")
    with pytest.raises(TokenariumError, match="did you mean energy"):
        widget.state = {"tensor": "enrgy"}
    assert widget.state["tensor"] == "energy"


def test_the_front_end_knows_the_same_roles():
    script = explorer_html(xr.Dataset({"x": (("a",), np.zeros(2))}))
    told = re.search(r"const ROLES = \{(.+?)\n\};", script, re.DOTALL)[1]
    assert tuple(re.findall(r"^  (\w+):", told, re.MULTILINE)) == ROLES


# Pages


VALUES = st.one_of(
    arrays.arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32)),
    arrays.arrays(np.float64, (3, 4), elements=st.floats(allow_nan=True)),
    arrays.arrays(np.int64, (3, 4), elements=st.integers(-(2**53), 2**53)),
    arrays.arrays(np.uint8, (2, 2)),
    arrays.arrays(np.bool_, (5,)),
)


@settings(deadline=None)
@given(values=VALUES)
def test_packing_loses_nothing(values):
    found, name = packed(values)
    np.testing.assert_array_equal(found.astype(np.float64), values.astype(np.float64))
    assert found.dtype == np.dtype(DTYPES[name])


def test_a_page_holds_the_tensors(dataset):
    runs, catalog = runs_and_catalog(dataset)
    carried = embed(runs, catalog)["runs"]["run"]["tensors"]
    for name in ("source", "size"):
        np.testing.assert_array_equal(decoded(carried[name]), dataset[name].values)
        assert carried[name]["left_out"] == ""
    np.testing.assert_allclose(decoded(carried["energy"]), dataset.energy.values, rtol=5e-4)
    assert carried["energy"]["left_out"] == "digits beyond float16, about the fourth"
    assert "data" not in catalog["runs"]["run"]["tensors"]["energy"]  # the catalogue itself stays as it was


@pytest.mark.parametrize("limit", [1, 100, 400, 1000, 3000])
def test_a_page_is_bounded_and_says_what_it_left_out(dataset, limit):
    big = xr.Dataset({"x": (("image", "head", "token"), np.random.default_rng(0).normal(size=(6, 5, 40)))})
    big = big.assign_coords(image=[2, 3, 5, 7, 11, 13])
    runs, catalog = runs_and_catalog(big.merge(dataset.size.rename(image="other")))
    carried = embed(runs, catalog, page_bytes=limit)["runs"]["run"]["tensors"]
    assert sum(decoded(spec).nbytes for spec in carried.values()) <= max(limit, 16)
    spec = carried["x"]
    images, heads, tokens = spec["shape"]
    np.testing.assert_allclose(decoded(spec), big.x.values[:images, :heads, :tokens], rtol=1e-3)
    if limit < 2400:
        assert f"all but the first {images} of 6 along image" in spec["left_out"]
    assert spec["coords"] == {"image": [2, 3, 5, 7, 11, 13][:images]}


def test_values_that_float16_cannot_hold_stay_float32():
    for scale in (1e-6, 1e6):
        runs, catalog = runs_and_catalog(xr.Dataset({"x": (("a",), np.float32([0.5, 1, 1.7]) * np.float32(scale))}))
        spec = embed(runs, catalog)["runs"]["run"]["tensors"]["x"]
        np.testing.assert_array_equal(decoded(spec), runs["run"].x.values)
        assert spec["left_out"] == ""


def test_a_page_asks_for_nothing_and_nothing_ends_its_script(tmp_path, dataset):
    dataset = dataset.assign_coords(word=["</script>", "<b>", "&"])
    page = export_html(dataset, tmp_path / "deep" / "page.html", title="<Tensors> & more").read_text(encoding="utf-8")
    assert "<title>&lt;Tensors&gt; &amp; more</title>" in page
    assert page.count("</script>") == page.count("<script") == 2
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "default-src 'none'" in page
    for address in re.findall(r"https?://[^\s\"']+", page):
        assert address == "http://www.w3.org/2000/svg", address  # a name, not a place
    assert export_html(dataset, tmp_path / "again.html", title="<Tensors> & more").read_text(encoding="utf-8") == page


def test_a_reports_page_names_all_its_tensors(project, tmp_path):
    folder = project / "reports" / "tiny"
    (folder / "tensors").mkdir(parents=True)
    save_file({"energy": np.zeros((2, 16), np.float32)}, folder / "tensors" / "tensors.safetensors")
    entry = {"dims": ["image", "token"], "note": "how <crowded>", "unit": "nats", "coords": {}}
    (folder / "tensors" / "index.json").write_text(json.dumps({"energy": entry}))
    write_page(folder, tmp_path / "tiny.html")
    page = (tmp_path / "tiny.html").read_text(encoding="utf-8")
    assert "<h1>Tensors of tiny</h1>" in page
    assert "<td>energy</td><td>image: 2, token: 16</td><td>nats</td><td>how &lt;crowded&gt;</td>" in page
    with pytest.raises(TokenariumError, match="run `dvc checkout"):
        write_page(project / "reports" / "none", tmp_path / "none.html")
