"""`lm-tiny`: the small language model that the tokenizer papers stand on, trained here from nothing.

A Llama of 4 layers and 192 dimensions with separate input and output embeddings and a byte-level BPE of its own,
trained on that very text: help pages and manual pages in English, Python, and a share of help in German, Turkish and
Greek. Small enough that some seeds and what is trained on top of them fit into minutes, and real enough that a token
has a meaning which its pieces tell something about.

Muon (torch.optim.Muon, Jordan et al. 2024) drives the matrices inside the layers, AdamW the rest. Documents of the
splits "validation" and "test" (see `tokenarium.data.text`) are never trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import safe_open
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokenarium.data import libreoffice_help, man_pages, python_source
from tokenarium.files import replace_directory, write_json, write_whole

START, PADDING = "<|endoftext|>", "<|padding|>"  # ids 0 and 1; the first also stands before every document
BIT = math.log(2)


def documents(root: Path, bytes_of: Mapping[str, int], split: str = "train") -> list[str]:
    """Whole documents of each kind of text until its number of bytes is reached, kind by kind.

    bytes_of: "man-pages", "python", or a language of the help ("en-US", "tr") -> UTF-8 bytes. The paragraphs of a help
    page are its lines. Which documents are taken depends on their names alone, not on a seed.
    """
    chosen: list[str] = []
    for kind, most in bytes_of.items():
        pages = _pages(root, kind, split)
        taken = 0
        for name in sorted(pages, key=lambda name: hashlib.sha256(name.encode()).digest()):
            if taken >= most:
                break
            chosen.append(pages[name])
            taken += len(pages[name].encode())
    return chosen


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with GPT-2's split into words; no token is added to a text by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=START,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def config(vocab_size: int, context: int, layers: int = 4, width: int = 192) -> LlamaConfig:
    """Configuration of the model; context in tokens."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )


def build(root: Path, path: Path, seed: int, recipe: Mapping[str, Any]) -> float:
    """Train one seed and write its model directory `path` whole, with tokenizer.json; returns held-out bits per byte.

    The tokenizer is the same for every seed. Interrupted training resumes from the last checkpoint.
    """
    texts = documents(root, recipe["bytes"])
    tokenizer = train_tokenizer(texts, recipe["vocab_size"])
    set_seed(seed)
    model = LlamaForCausalLM(config(len(tokenizer), recipe["context"], recipe["layers"], recipe["width"]))
    windows = _windows(tokenizer, texts, recipe["context"], seed)
    accelerator = Accelerator()
    model = accelerator.prepare(model)
    batch_size = min(recipe["batch_size"], len(windows))

    def loss_at(step: int) -> Tensor:
        return causal_loss(model, windows[batch(step, batch_size, len(windows), seed)].to(accelerator.device))

    checkpoint = checkpoints_of(root, path, recipe) / "model.safetensors"
    losses = fit(model, loss_at, optimizers(model, recipe), recipe, checkpoint, accelerator, f"lm-tiny, seed {seed}")
    model = accelerator.unwrap_model(model).eval()
    held_out = documents(root, recipe["held_out_bytes"], "validation")
    bits = bits_per_byte(model, tokenizer, held_out)

    staged = path.parent / f".{path.name}.partial"
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    write_json(
        staged / "training.json",
        {
            "seed": seed,
            "recipe": dict(recipe),
            "tokens": int(windows.numel()),
            "held_out_bits_per_byte": bits,
            "loss_every_10_steps": losses,
        },
    )
    replace_directory(staged, path)
    checkpoint.unlink()
    return bits


def causal_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats of every token but the first. ids: (batch, tokens) int64."""
    logits = model(input_ids=ids[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Bits for each UTF-8 byte, every text cut into windows of the model's context that each begin with START."""
    size = model.config.max_position_embeddings - 1
    nats, num_bytes = 0.0, 0
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        num_bytes += len(text.encode())
        for begin in range(0, len(ids), size):
            window = torch.tensor([[0, *ids[begin : begin + size]]], device=model.device)
            nats += float(causal_loss(model, window)) * (window.shape[1] - 1)
    return nats / BIT / num_bytes


# Training, here and of what is trained on top of this model


def fit(
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    recipe: Mapping[str, Any],
    checkpoint: Path,
    accelerator: Accelerator,
    label: str,
    after: Callable[[int], None] | None = None,
) -> list[float]:
    """Train `module` in place for recipe["steps"] steps; returns every tenth loss.

    loss_at: step -> loss; it must depend on the step and the weights alone, so that a training resumed from
    `checkpoint` repeats an uninterrupted one. Learning rates rise over the share recipe["warmup"] and fall along a
    cosine to the share recipe["floor"] of their peaks; gradients are clipped to norm recipe["clip"]. after: called with
    the number of finished steps.
    """
    optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    steps = recipe["steps"]
    start, losses = _restore(checkpoint, accelerator.unwrap_model(module), optimizers)
    module.train()
    for step in tqdm(range(start, steps), initial=start, total=steps, desc=label, mininterval=1):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, peak, strict=True):
                group["lr"] = rate * schedule(step / steps, recipe["warmup"], recipe["floor"])
        loss = loss_at(step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(module.parameters(), recipe["clip"])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0:
            losses.append(round(loss.item(), 4))
        if (step + 1) % recipe["checkpoint_every"] == 0 or step + 1 == steps:
            _save(checkpoint, step + 1, losses, accelerator.unwrap_model(module), optimizers)
            if after is not None:
                after(step + 1)
    module.eval()
    return losses


def optimizers(model: nn.Module, recipe: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    decay = recipe["weight_decay"]
    return [
        torch.optim.Muon(matrices, lr=recipe["muon_learning_rate"], weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe["adamw_learning_rate"], weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def schedule(progress: float, warmup: float, floor: float) -> float:
    """Learning-rate factor at `progress` in [0, 1): linear up to 1 over `warmup`, then a cosine down to `floor`."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def batch(step: int, batch_size: int, count: int, stream: int) -> Tensor:
    """Indices of one step: consecutive batches of an epoch's own permutation, the last short one dropped."""
    epoch, place = divmod(step, count // batch_size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(stream * 1_000_000 + epoch))
    return order[place * batch_size : (place + 1) * batch_size]


def checkpoints_of(root: Path, path: Path, recipe: Mapping[str, Any]) -> Path:
    """Where the checkpoints of a model directory lie; another recipe has another place."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    return root / ".tokenarium" / "checkpoints" / f"{path.parent.name}-{path.name}-{digest}"


def _pages(root: Path, kind: str, split: str) -> dict[str, str]:
    if kind == "man-pages":
        rows = man_pages.load(root, split)
    elif kind == "python":
        rows = python_source.load(root, split)
    else:
        rows = libreoffice_help.load(root, kind, split)
    pages: dict[str, list[str]] = {}
    for row in rows:
        pages.setdefault(row["id"].partition("#")[0], []).append(row["text"])
    return {name: "\n".join(lines) for name, lines in pages.items()}


def _windows(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], context: int, seed: int) -> Tensor:
    """(windows, context) int64: all documents in the seed's order, each after START, cut without overlap."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    encoded = tokenizer([texts[index] for index in order], add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in (0, *ids)])
    return stream[: len(stream) // context * context].reshape(-1, context)


def _save(path: Path, step: int, losses: list[float], module: nn.Module, optimizers: Sequence[Any]) -> None:
    """Write a checkpoint whole: weights and optimizer tensors, with the next step and the losses so far."""
    tensors = {f"model.{name}": value.contiguous() for name, value in module.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for key, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{number}.{key}.{name}": value.contiguous() for name, value in state.items()}
    with write_whole(path, "wb") as file:
        file.write(save(tensors, metadata={"step": str(step), "losses": json.dumps(losses)}))


def _restore(path: Path, module: nn.Module, optimizers: Sequence[Any]) -> tuple[int, list[float]]:
    """Load the checkpoint at `path` into module and optimizers, if there is one; returns (next step, losses)."""
    if not path.is_file():
        return 0, []
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    prefixed = [(name.partition("."), value) for name, value in tensors.items()]
    module.load_state_dict({name: value for (kind, _, name), value in prefixed if kind == "model"})
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for (kind, _, rest), value in prefixed:
            if kind == f"optimizer{number}":
                key, name = rest.split(".")
                state.setdefault(int(key), {})[name] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(metadata["step"]), json.loads(metadata["losses"])
