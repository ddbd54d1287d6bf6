"""A random vision-language model of the suite's own architecture and vocabulary, for tests and smoke runs."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tokenarium.data import scenes

SPREAD = 4.0  # of the initial weights, whose own is so small that nothing would depend on anything


def tiny_model(
    seed: int, layers: int = 8, width: int = 32, heads: int = 2, key_value_heads: int = 2, blocks: int = 8
) -> LlavaForConditionalGeneration:
    """A model with 144 patches, CLS and a projector with GELU, in evaluation mode."""
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        image_size=scenes.SIZE,
        patch_size=scenes.PATCH,
    )
    text = LlamaConfig(
        vocab_size=len(scenes.SPECIAL) + len(scenes.WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=1024,
        bos_token_id=scenes.SPECIAL.index(scenes.START),
        eos_token_id=scenes.SPECIAL.index(scenes.END),
        pad_token_id=scenes.SPECIAL.index(scenes.PADDING),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=scenes.SPECIAL.index(scenes.IMAGE),
        image_seq_length=scenes.GRID**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.mul_(SPREAD)
    return model.eval()


def tiny_processor() -> LlavaProcessor:
    """Words of the scenes to ids, pictures of 96 pixels as they are."""
    words = {word: index for index, word in enumerate((*scenes.SPECIAL, *scenes.WORDS))}
    backend = Tokenizer(models.WordLevel(words, unk_token=scenes.UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    start = (scenes.START, words[scenes.START])
    backend.post_processor = processors.TemplateProcessing(single=f"{scenes.START} $A", special_tokens=[start])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=scenes.START,
        eos_token=scenes.END,
        pad_token=scenes.PADDING,
        unk_token=scenes.UNKNOWN,
        extra_special_tokens={"image_token": scenes.IMAGE},
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(do_resize=False, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=scenes.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
