"""The shared harness of the family: one model, the same questions, and a method between them (H1 to H11)."""

from tokenarium.methods.vlm.harness.account import BUDGETS, Shape, matched, prefill_flops, vbar
from tokenarium.methods.vlm.harness.evaluation import decode, enter, evaluate, select
from tokenarium.methods.vlm.harness.method import Cut, Method, Visual
from tokenarium.methods.vlm.harness.questions import Question
from tokenarium.methods.vlm.harness.runner import Runner, one_hot
from tokenarium.methods.vlm.harness.substrate import DEV, Substrate, open_substrate
from tokenarium.methods.vlm.harness.tower import ImageView, TowerTokens
from tokenarium.methods.vlm.harness.views import LayerView, Memory, NeuronView, merged

__all__ = [
    "BUDGETS",
    "DEV",
    "Cut",
    "ImageView",
    "LayerView",
    "Memory",
    "Method",
    "NeuronView",
    "Question",
    "Runner",
    "Shape",
    "Substrate",
    "TowerTokens",
    "Visual",
    "decode",
    "enter",
    "evaluate",
    "matched",
    "merged",
    "one_hot",
    "open_substrate",
    "prefill_flops",
    "select",
    "vbar",
]
