"""`tokenarium tokenizer-report` on small texts, with tokenizers small enough to be counted by hand."""

import io

import matplotlib.image
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import bpe
from tokenarium.run import cli
from tokenarium.run.tokenizer_report import draw, measure, read_texts, report


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkout whose gpt2 knows bytes alone, and whose claude has learnt one English line."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "params.yaml").touch()
    (root / "dvc.yaml").touch()
    known = {"gpt2": bpe.Bpe((), bpe.gpt2_words()), "claude": bpe.train(["all human beings are born free"], 320)}
    for name, model in known.items():
        folder = root / "data" / "tokenizers" / name
        folder.mkdir(parents=True)
        model.tokenizer().save(str(folder / "tokenizer.json"))
    return root


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    (folder / "el").mkdir(parents=True)
    (folder / "en.txt").write_text("all human beings\n\nare born free\n", encoding="utf-8")
    (folder / "el" / "a.txt").write_text("όλοι οι άνθρωποι\n", encoding="utf-8")
    (folder / "el" / "b.txt").write_text("γεννιούνται ελεύθεροι\n", encoding="utf-8")
    return folder


def printed(root, *arguments, **options):
    console = Console(file=io.StringIO(), width=100)
    report(root, *arguments, console=console, **options)
    return console.file.getvalue()


def test_a_folder_holds_a_text_for_each_file_and_folder_in_it(texts):
    (texts / ".hidden").write_text("no")
    assert read_texts([texts]) == {
        "el": ["όλοι οι άνθρωποι", "γεννιούνται ελεύθεροι"],
        "en": ["all human beings", "are born free"],
    }


def test_bytes_cost_a_token_each_and_premiums_compare_with_english(root, texts):
    measured = measure(root, read_texts([texts]), ["gpt2", "claude"])
    greek, english = len("όλοι οι άνθρωποιγεννιούνται ελεύθεροι".encode()), len("all human beingsare born free")
    assert measured.bytes == {"el": greek, "en": english}
    assert measured.tokens["gpt2"] == measured.bytes
    assert measured.tokens_per_byte("gpt2", "el") == 1
    assert measured.reference == "en"
    assert measured.premium("gpt2", "el") == greek / english
    assert measured.premium("claude", "el") > greek / english
    assert measured.premium("claude", "en") == 1


def test_everything_is_printed(root, texts):
    shown = printed(root, [texts], ["gpt2", "claude"], sample="free [b]é[/b]")
    for part in (
        "Tokens per byte",
        "Tokens for one token of en",
        "1.000",
        "gpt2: 14 tokens",
        "f|r|e|e| |[|b|]|<C3>|<A9>|[",
    ):
        assert part in shown


def test_one_text_has_no_premium(root, texts):
    assert "Tokens for one token" not in printed(root, [texts / "en.txt"], ["gpt2"])


def test_any_text_can_be_the_one_to_compare_with(root, texts):
    measured = measure(root, read_texts([texts]), ["gpt2"], reference="el")
    assert measured.premium("gpt2", "en") < 1


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_figure_is_drawn_into_a_file(root, texts, tmp_path, kind):
    path = tmp_path / "figures" / f"cost.{kind}"
    assert f"figure: {path}" in printed(root, [texts], ["gpt2", "claude"], figure=path).replace("\n", "")
    if kind == "png":
        assert matplotlib.image.imread(path).std() > 0
    else:
        assert "tokens per byte" in path.read_text()


def test_a_figure_shows_the_numbers(root, texts):
    measured = measure(root, read_texts([texts]), ["gpt2", "claude"])
    left, right = draw(measured).axes
    assert [bar.get_width() for bar in left.patches] == [
        measured.tokens_per_byte(tokenizer, text) for tokenizer in ("gpt2", "claude") for text in ("el", "en")
    ]
    assert right.get_xlabel() == "tokens for one of en"


def test_mistakes_are_named_with_their_mend(root, texts, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    (tmp_path / "zeros.txt").write_bytes(b"a\x00b")
    (tmp_path / "nothing").mkdir()
    for paths, options, message in (
        ([texts / "none.txt"], {}, "none.txt does not exist: name a text file"),
        ([tmp_path / "empty.txt"], {}, "empty.txt holds no text"),
        ([tmp_path / "image.png"], {}, r"image.png is not UTF-8 text \(byte 0\)"),
        ([tmp_path / "zeros.txt"], {}, "zeros.txt is binary"),
        ([tmp_path / "nothing"], {}, "nothing holds no files"),
        ([texts, texts / "en.txt"], {}, "two texts are named 'en'"),
        ([texts], {"reference": "eng"}, "no text is named 'eng'; did you mean en"),
        ([texts], {"figure": tmp_path / "cost.gif"}, r"cost.gif: name it with .png, .svg"),
        ([texts], {"sample": " "}, "the sample is empty"),
    ):
        with pytest.raises(TokenariumError, match=message):
            printed(root, paths, ["gpt2"], **options)
    with pytest.raises(TokenariumError, match="no tokenizer is named 'claud': did you mean 'claude'"):
        printed(root, [texts], ["claud"])
    with pytest.raises(TokenariumError, match=r"gpt4o/tokenizer.json is missing: run `tokenarium data tokenizers`"):
        printed(root, [texts], ["gpt4o"])
    assert not list(tmp_path.glob("cost*"))


def test_the_command_takes_names_with_commas(root, texts, monkeypatch):
    monkeypatch.chdir(root)
    done = CliRunner().invoke(cli.app, ["tokenizer-report", str(texts), "--tokenizers", "gpt2, claude"])
    assert done.exit_code == 0
    assert "gpt2" in done.output
    assert "claude" in done.output
    with pytest.raises(TokenariumError, match="--tokenizers names none"):
        CliRunner().invoke(cli.app, ["tokenizer-report", str(texts), "--tokenizers", ","], catch_exceptions=False)
