"""kvlab: keep or show part of the key-value cache of a Llama, Qwen or Gemma, and measure what that costs."""

from tokenarium.methods.context.kvlab.attention import attend, use
from tokenarium.methods.context.kvlab.cache import CompressedCache, EvictingCache, SelectingCache
from tokenarium.methods.context.kvlab.observation import Observation
from tokenarium.methods.context.kvlab.policies import (
    H2O,
    TOVA,
    EvictionPolicy,
    KNorm,
    ObservedAttention,
    Oracle,
    Policy,
    Random,
    Replay,
    SelectionPolicy,
    SnapKV,
    StreamingLLM,
    Window,
    generator,
    top,
)
from tokenarium.methods.context.kvlab.prefill import Prefill, prefill
from tokenarium.methods.context.kvlab.run import (
    FULL,
    PROTOCOLS,
    decode,
    evaluate,
    evaluate_continuations,
    evaluate_stepwise,
    forward,
)

__all__ = [
    "FULL",
    "H2O",
    "PROTOCOLS",
    "TOVA",
    "CompressedCache",
    "EvictingCache",
    "EvictionPolicy",
    "KNorm",
    "Observation",
    "ObservedAttention",
    "Oracle",
    "Policy",
    "Prefill",
    "Random",
    "Replay",
    "SelectingCache",
    "SelectionPolicy",
    "SnapKV",
    "StreamingLLM",
    "Window",
    "attend",
    "decode",
    "evaluate",
    "evaluate_continuations",
    "evaluate_stepwise",
    "forward",
    "generator",
    "prefill",
    "top",
    "use",
]
