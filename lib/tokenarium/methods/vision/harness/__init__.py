"""The shared vision harness: run any ViT with a reduction method in its blocks, and compare methods fairly."""

from tokenarium.methods.vision.harness.runner import Reducer, Reduction, Run, Trace, identity_source, run

__all__ = ["Reducer", "Reduction", "Run", "Trace", "identity_source", "run"]
