"""The models that the family is tested on, with the questions to ask them (H1, H3).

`model` names them: `llava-scenes`, trained in the suite on drawn scenes; `tiny`, random and made on the spot, for smoke
runs; anything else is a checkpoint of the Hugging Face hub or a folder, and `data` a data set of the hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from tokenarium.data import scenes
from tokenarium.errors import TokenariumError
from tokenarium.methods.vlm.harness.account import Shape
from tokenarium.methods.vlm.harness.method import Method
from tokenarium.methods.vlm.harness.questions import Question
from tokenarium.methods.vlm.harness.tiny import tiny_model, tiny_processor
from tokenarium.methods.vlm.harness.tower import ImageView, reduced_view, tower_states

LOCAL, TINY = "llava-scenes", "tiny"
DEV = "held-out"  # the stream of questions that settings are chosen on
TEMPLATE = "USER: <image>\n{question}\nAnswer the question using a single word or phrase. ASSISTANT:"
CUE = " ASSISTANT:"
CACHE_BYTES = 2**30  # hidden states of the tower are kept up to this size, and made anew for each batch beyond it
NEW_TOKENS = 8  # of a free answer


@dataclass
class Substrate:
    """One vision-language model and a fixed list of questions.

    pixels: images' model input by their numbers, (images, 3, height, width). images: (images, height, width, 3) uint8
    and objects: (images, N) bool, the patches of any item, where they are known. accepts: what counts as right in a
    decoded answer; None: the answer's own ids, each the most likely.
    """

    name: str
    seed: int
    model: LlavaForConditionalGeneration
    processor: Any
    questions: list[Question]
    pixels: Callable[[Sequence[int]], Tensor]
    images: NDArray[np.uint8] | None = None
    objects: NDArray[np.bool_] | None = None
    accepts: Callable[[Question, str], bool] | None = None
    _states: Tensor | None = field(default=None, repr=False)

    @property
    def shape(self) -> Shape:
        return Shape.of(self.model)

    @property
    def families(self) -> NDArray[np.str_]:
        return np.array([question.family for question in self.questions])

    @property
    def relevant(self) -> NDArray[np.bool_]:
        return np.stack([question.relevant for question in self.questions])

    def states(self, images: Sequence[int]) -> Tensor:
        """Hidden states of the tower for some images: (images, blocks + 1, 1+N, dim)."""
        vision = self.model.config.vision_config
        size = (vision.num_hidden_layers + 1) * (self.shape.num_patches + 1) * vision.hidden_size
        count = 1 + max(question.image for question in self.questions)
        if count * size * self.model.dtype.itemsize > CACHE_BYTES:
            return tower_states(self.model, self.pixels(images))
        if self._states is None:
            parts = range(0, count, 32)
            self._states = torch.cat(
                [tower_states(self.model, self.pixels(range(a, min(a + 32, count)))) for a in parts]
            )
        return self._states[list(images)]

    def views(self, questions: Sequence[Question], method: Method | None = None) -> list[ImageView]:
        """One view for each question's image; with the question in it if the method asks for it."""
        method = method or Method()
        asked = [question if method.asks_question else None for question in questions]
        numbers = [question.image for question in questions]
        if method.overrides("in_tower"):
            return [
                reduced_view(self.model, self.pixels([number]), method, number, question)
                for number, question in zip(numbers, asked, strict=True)
            ]
        return [
            ImageView(self.model, states, number, question)
            for states, number, question in zip(self.states(numbers), numbers, asked, strict=True)
        ]

    def decode(self, ids: Tensor) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def open_substrate(
    root: Path,
    parameters: Mapping[str, Any],
    seed: int,
    stream: str = "evaluation",
    questions: int | None = None,
    device: torch.device | str = "cpu",
    pages: bool = False,
    model: LlavaForConditionalGeneration | None = None,
) -> Substrate:
    """The substrate that `parameters.model` and `parameters.data` name, with its list of questions (H3).

    questions: how many, `parameters.questions` by default. stream: which list of drawn scenes, "evaluation" or DEV.
    pages: the list with dense glyph pages. model: one to use instead of loading, with the processor of `tiny`.
    Raises TokenariumError for a model that has not been made or cannot be had.
    """
    count, name = questions or parameters["questions"], parameters["model"]
    if name not in (LOCAL, TINY) and model is None:
        return _from_hub(name, parameters["data"], count, torch.device(device), last=stream == DEV)
    if name == LOCAL and model is None:
        path = root / "models" / LOCAL / f"seed{seed}"
        if not (path / "config.json").is_file():
            raise TokenariumError(f"{path} is missing: run `dvc repro model@{LOCAL}-seed{seed}`")
        model = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        processor = LlavaProcessor.from_pretrained(path)
    else:
        model, processor = model or tiny_model(seed), tiny_processor()
    if pages:
        evaluation = scenes.page_evaluation(count, stream=f"{stream}-pages")
    else:
        evaluation = scenes.evaluation(-(-count // len(scenes.FAMILIES)), stream=stream)
    return on_scenes(name, seed, model.to(device).eval(), processor, evaluation, count)


def on_scenes(
    name: str,
    seed: int,
    model: LlavaForConditionalGeneration,
    processor: Any,
    evaluation: scenes.Evaluation,
    count: int,
) -> Substrate:
    """A model with the first `count` questions of a list of scenes."""
    asked = list(evaluation.questions[:count])
    images = evaluation.images[:count]
    tokenizer, image_token = processor.tokenizer, model.config.image_token_id
    questions = []
    for index, (question, relevant) in enumerate(zip(asked, evaluation.relevant[:count], strict=True)):
        before, after = split_prompt(tokenizer(question.prompt)["input_ids"], image_token)
        (answer,) = tokenizer(question.answer, add_special_tokens=False)["input_ids"]
        questions.append(
            Question(
                index, index, question.family, question.text, before, after, (answer,), np.asarray(relevant), cue=1
            )
        )

    def pixels(numbers: Sequence[int]) -> Tensor:
        batch = [images[number] for number in numbers]
        return processor.image_processor(batch, return_tensors="pt")["pixel_values"]

    objects = np.asarray(evaluation.objects[:count])
    return Substrate(name, seed, model, processor, questions, pixels, images, objects)


def split_prompt(ids: Sequence[int], image_token: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and after the image in a prompt that has one image token, or a run of them."""
    ids = list(ids)
    if image_token not in ids:
        raise ValueError("the prompt has no image token")
    first = ids.index(image_token)
    last = len(ids) - 1 - ids[::-1].index(image_token)
    return tuple(ids[:first]), tuple(ids[last + 1 :])


def _from_hub(model_id: str, data_id: str, count: int, device: torch.device, last: bool) -> Substrate:
    """A LLaVA checkpoint, and a data set with columns image, question and answer (or answers).

    last: take the last rows of the data set, not the first.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise TokenariumError("profile gpu reads data sets of the hub: pip install 'tokenarium[hub]'") from None
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        model = LlavaForConditionalGeneration.from_pretrained(
            model_id, dtype=dtype, use_safetensors=True, device_map={"": device}
        )
        processor = AutoProcessor.from_pretrained(model_id)
        rows = load_dataset(data_id, split="test")
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TokenariumError(f"cannot load {model_id} or {data_id} from the hub: {reason}") from None
    count = min(count, len(rows))
    rows = rows.select(range(len(rows) - count, len(rows)) if last else range(count))
    tokenizer, image_token = processor.tokenizer, model.config.image_token_id
    num_patches = Shape.of(model).num_patches
    cue = len(tokenizer(CUE.strip(), add_special_tokens=False)["input_ids"])
    family = next((column for column in ("category", "type") if column in rows.column_names), None)
    accepted = {}
    questions = []
    for index, row in enumerate(rows.select_columns([c for c in rows.column_names if c != "image"])):
        text = TEMPLATE.format(question=row["question"].strip())
        before, after = split_prompt(tokenizer(text)["input_ids"], image_token)
        answers = row["answers"] if "answers" in row else [row["answer"]]
        accepted[index] = {plain(answer) for answer in answers}
        answer = tuple(tokenizer(answers[0], add_special_tokens=False)["input_ids"])
        none = np.zeros(num_patches, dtype=bool)
        name = str(row[family]) if family else "all"
        questions.append(Question(index, index, name, row["question"], before, after, answer, none, cue))

    def pixels(numbers: Sequence[int]) -> Tensor:
        batch = [rows[int(number)]["image"].convert("RGB") for number in numbers]
        return processor.image_processor(batch, return_tensors="pt")["pixel_values"].to(device, dtype)

    def accepts(question: Question, answer: str) -> bool:
        return plain(answer) in accepted[question.index]

    return Substrate(model_id, 0, model.eval(), processor, questions, pixels, accepts=accepts)


def plain(answer: str) -> str:
    """An answer without case, articles, punctuation and double blanks."""
    words = re.sub(r"[^\w\s]", " ", answer.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
