"""Checkpoints as a study needs them: its device and dtype, the attention its method asks for, safetensors alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tokenarium.errors import TokenariumError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tokenarium.study.study import Study

# What a method does with attention -> the implementation of transformers that allows it.
ATTENTION = {
    "weights": "eager",  # reads the softmax of every head, or adds to it in the model's own code
    "mask": "sdpa",  # gives a mask of its own, (batch, 1, queries, keys)
    "nothing": "sdpa",  # takes the model as it is
}
SPARE = 0.9  # share of a lease that weights may fill; the rest is for activations


def load_pretrained(
    study: Study,
    model_class: Any,
    checkpoint: str,
    *,
    uses: Literal["weights", "mask", "nothing"],
    dtype: torch.dtype | None = None,
    spread: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """The model of a checkpoint of the hub or of a folder, on the study's device and in evaluation mode.

    model_class: a class of transformers with `from_pretrained`. uses: what the method does with attention (ATTENTION).
    dtype: the study's by default. spread: let accelerate place the layers, those beyond the GPU's lease in main
    memory: for models larger than the GPU. options: for `from_pretrained`, such as `revision`.
    Raises TokenariumError for a checkpoint that cannot be had, that has no safetensors or needs code of its own, for
    an unknown `uses`, and for an attention that the model's class does not have.
    """
    if uses not in ATTENTION:
        raise TokenariumError(f"unknown use of attention '{uses}'; known: {', '.join(ATTENTION)}")
    placement: dict[str, Any] = {"device_map": {"": study.device}}
    if spread and study.device.type == "cuda":
        placement = {"device_map": "auto", "max_memory": _memory(study)}
    try:
        model = model_class.from_pretrained(
            checkpoint,
            dtype=dtype or study.dtype,
            attn_implementation=ATTENTION[uses],
            use_safetensors=True,
            trust_remote_code=False,
            **placement,
            **options,
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TokenariumError(f"cannot load {checkpoint}: {reason}") from None
    return model.eval()


def _memory(study: Study) -> dict[int | str, int]:
    """Bytes that weights may take: most of the lease on its GPU, and the main memory that is free."""
    import psutil
    import torch

    from tokenarium.run.gpu import CONTEXT

    leased = (study.lease.need - CONTEXT) * 2**20
    return {torch.cuda.current_device(): int(SPARE * leased), "cpu": int(SPARE * psutil.virtual_memory().available)}
