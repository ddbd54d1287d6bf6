"""A stand-in for the Hugging Face hub: a folder in the layout of its cache, read offline by the ordinary clients.

It holds tiny random checkpoints of the classes that profile gpu names, and a few rows of its data sets.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

DEIT = "facebook/deit-small-patch16-224"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LLAMA = "stand-in/llama"
IMAGENET = "imagenet-1k"
REVISION = "0" * 40
CLASSES = 10


def make_hub(home: Path) -> dict[str, str]:
    """Fill `home` and return the environment in which the clients find it and do not look elsewhere."""
    for name, save in ((DEIT, save_deit), (MINILM, save_minilm), (LLAMA, save_llama)):
        folder = home / "hub" / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(REVISION)
        save(folder / "snapshots" / REVISION)
    save_imagenet(home)
    caches = {"HF_HUB_CACHE": str(home / "hub"), "HF_DATASETS_CACHE": str(home / "datasets")}
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", **caches}


def save_deit(folder: Path) -> None:
    """DeiT-S is a ViT of 12 layers on 14x14 patches: so is this one, 16 channels wide and on images of 56 pixels."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=56,
        patch_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=12,
        num_attention_heads=2,
        num_labels=CLASSES,
        initializer_range=0.3,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(folder)


def save_minilm(folder: Path) -> None:
    """A BERT encoder of six layers with WordPieces of single letters, so that any English text has enough of them."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    words = {word: index for index, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"]))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)


def save_llama(folder: Path) -> None:
    """A decoder of two layers with grouped keys and values."""
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def save_imagenet(home: Path) -> None:
    """Pictures of several sizes and modes with labels, as parquet files, prepared as `load_dataset` would."""
    from datasets import ClassLabel, Dataset, Features, load_dataset_builder
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[f"class {k}" for k in range(CLASSES)])})
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, IMAGENET)  # the data set is called after its folder
        for split, count in (("train", 12), ("validation", 16)):
            pictures = []
            for index in range(count):
                shape = (40 + index, 50) if index % 4 == 3 else (40 + index, 50, 3)  # some are grey
                pictures.append(Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)))
            labels = [index % CLASSES for index in range(count)]
            rows = Dataset.from_dict({"image": pictures, "label": labels}, features=features)
            (source / "data").mkdir(parents=True, exist_ok=True)
            rows.to_parquet(str(source / "data" / f"{split}-00000-of-00001.parquet"))
        load_dataset_builder(str(source), cache_dir=str(home / "datasets")).download_and_prepare()


def save_paragraphs(path: Path, count: int) -> None:
    """Different paragraphs of three sentences and about 150 letters each, in the form of the Debian Reference."""
    generator = np.random.default_rng(3)
    words = ["kernel", "package", "archive", "shell", "mirror", "socket", "daemon", "locale", "script", "volume"]
    lines = []
    for index in range(count):
        sentences = [" ".join(generator.choice(words, 7)).capitalize() + "." for _ in range(3)]
        lines.append(json.dumps({"id": f"ch01-{index:03d}", "section": "tiny", "text": " ".join(sentences)}))
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
