"""Language models from GGUF files: weights are the file's numbers, the tokenizer is real, the answers make sense."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokenarium.data import king_james_bible, libreoffice_help
from tokenarium.data.tokenizers import byte_symbols, load_tokenizer
from tokenarium.errors import TokenariumError
from tokenarium.models import RECIPES, gemma3, language, smollm2
from tokenarium.study.parameters import project_root

ROOT = project_root(Path(__file__).parent)
REAL = {"smollm2-135m": ("smollm2", smollm2), "gemma3-270m": ("gemma3", gemma3)}


def bytes_tokenizer():
    """One token a byte, and a start and an end symbol."""
    vocabulary = {symbol: index for index, symbol in enumerate(byte_symbols())}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@pytest.fixture
def tiny(tmp_path):
    """A directory with a small untrained model of bytes, and its tokenizer."""
    tokenizer = bytes_tokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(tmp_path / "tiny")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=258, **sizes)).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny", tokenizer


def test_bits_per_byte_are_the_surprise_at_each_token_in_turn(tiny):
    tokenizer, model = language.load(tiny[0])
    text = "aé b"
    ids = [256, *text.encode()]
    total = 0.0
    with torch.no_grad():
        for position in range(1, len(ids)):  # one forward pass a token, nothing after it in sight
            logits = model(torch.tensor([ids[:position]])).logits[0, -1].double()
            total -= float(torch.log_softmax(logits, 0)[ids[position]])
    assert language.bits_per_byte(tokenizer, model, text) == pytest.approx(total / math.log(2) / 5, rel=1e-5)


def test_an_ignorant_model_needs_about_eight_bits_a_byte(tiny):
    assert language.bits_per_byte(*language.load(tiny[0]), language.PROSE) == pytest.approx(math.log2(258), abs=0.2)


def test_a_tokenizer_without_start_symbol_is_named(tiny):
    tokenizer, model = language.load(tiny[0])
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="no start symbol"):
        language.bits_per_byte(tokenizer, model, "a")


def test_random_lines_are_the_same_every_time_and_hold_no_special_token():
    tokenizer = bytes_tokenizer()
    lines = language.random_lines(tokenizer, 200)
    assert lines == language.random_lines(tokenizer, 200)
    assert len(set(lines)) > 190
    assert not any("<s>" in line for line in lines)


def test_a_model_that_passes_is_reported(tiny):
    path, tokenizer = tiny
    continued = language.greedy(*language.load(path), "abc")
    found = language.check(path, tokenizer, (7, 9), {"abc": continued[:1]})
    assert found["equal_lines"] == language.LINES
    assert found["rows"] == 258
    assert found["abc"] == continued


@pytest.mark.parametrize(
    ("bits", "answers", "complaint"),
    [((0.5, 1.5), {}, "predicts badly: 8"), ((7, 9), {"abc": "no such word"}, "lacks 'no such word'")],
)
def test_a_model_that_fails_is_refused(tiny, bits, answers, complaint):
    with pytest.raises(TokenariumError, match=complaint):
        language.check(*tiny, bits, answers)


def test_another_tokenizer_is_refused(tiny):
    path, tokenizer = tiny
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(TokenariumError, match="not the real one"):
        language.check(path, tokenizer, (7, 9), {})


def test_loading_before_building_names_the_mend(tmp_path):
    with pytest.raises(TokenariumError, match="dvc repro model@smollm2-135m"):
        language.load(tmp_path / "smollm2-135m")


def write_gguf(path, model):
    """A llama.cpp file of a small Llama, its key and query rows in llama.cpp's order, embeddings quantised to Q8_0."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(path, "llama")
    config = model.config
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.0.input_layernorm": "blk.0.attn_norm",
        "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        **{f"model.layers.0.self_attn.{name}_proj": f"blk.0.attn_{name}" for name in "qkv"},
        "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
        **{f"model.layers.0.mlp.{name}_proj": f"blk.0.ffn_{name}" for name in ("gate", "up", "down")},
    }
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        stem = name.removesuffix(".weight")
        values = weight.float().numpy()
        if stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            halves = values.reshape(heads, 2, -1, values.shape[-1])
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        if stem == "model.embed_tokens":
            packed = quants.quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{names[stem]}.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{names[stem]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_converting_keeps_every_number_of_the_file(tmp_path):
    from gguf import GGMLQuantizationType, quants

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=40, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config).eval()
    embeddings = model.get_input_embeddings().weight
    write_gguf(tmp_path / "model.gguf", model)
    packed = quants.quantize(embeddings.detach().numpy(), GGMLQuantizationType.Q8_0)
    embeddings.data = torch.from_numpy(quants.dequantize(packed, GGMLQuantizationType.Q8_0))

    output = tmp_path / "output"
    output.mkdir()
    language.convert(tmp_path / "model.gguf", output, {"bos_token_id": 7})
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors"}
    text = (output / "config.json").read_text()
    assert str(tmp_path) not in text  # or it would differ from place to place
    held = json.loads(text)
    assert held["bos_token_id"] == 7
    assert "quantization_config" not in held
    converted = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    expected = model.state_dict()
    assert converted.state_dict().keys() == expected.keys()
    for name, weight in converted.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(converted(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", REAL)
def test_a_recipe_is_known_by_its_name(name):
    assert RECIPES[name] == REAL[name][1].__name__.rpartition(".")[2]
    assert REAL[name][1].MODEL.name == name


# The models themselves, where they were built


def built(name):
    path = ROOT / "models" / name
    if not (path / "config.json").is_file():
        pytest.skip(f"{path} is missing: run `dvc repro model@{name}`")
    return path


@pytest.mark.parametrize("name", REAL)
def test_a_real_model_splits_a_thousand_lines_as_the_real_tokenizer(name):
    from transformers import AutoTokenizer

    path = built(name)
    try:
        reference = load_tokenizer(REAL[name][0], ROOT)
        lines = [row["text"] for row in king_james_bible.load(ROOT, "test")[:300]]
        for language_name in ("en-US", "tr", "zh-CN", "ru", "hi"):
            lines += [row["text"] for row in libreoffice_help.load(ROOT, language_name, "test")[:140]]
    except TokenariumError as error:
        pytest.skip(str(error))
    assert len(lines) == 1000
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    encoded = tokenizer(lines, add_special_tokens=False)["input_ids"]
    assert encoded == [each.ids for each in reference.encode_batch(lines, add_special_tokens=False)]
    starts = [tokenizer.bos_token_id] if name == "gemma3-270m" else []  # only Gemma starts texts with a symbol
    assert tokenizer(lines[0])["input_ids"] == [*starts, *encoded[0]]


@pytest.mark.parametrize("name", REAL)
def test_a_real_model_predicts_english_and_answers(name):
    path = built(name)
    module = REAL[name][1]
    tokenizer, model = language.load(path)
    assert module.BITS[0] < language.bits_per_byte(tokenizer, model, language.PROSE) < module.BITS[1]
    for prompt, word in module.ANSWERS.items():
        assert word in language.greedy(tokenizer, model, prompt)
    scrambled = " ".join(sorted(language.PROSE.split()))
    assert language.bits_per_byte(tokenizer, model, scrambled) > 1.5 * module.BITS[1]
