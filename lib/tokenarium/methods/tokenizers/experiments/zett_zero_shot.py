"""ZeTT without any further training: every target and method, the learning curve, rows of tokens with known answers.

Parts: "tokens" (a target's vocabulary, tokens of each document, bytes), "documents-<seed>-<target>" (method -> bits of
each document), "curve-<seed>-<target>" (snapshot of the hypernetwork -> bits of each second document),
"known-<seed>" (cosines of rows made from pieces to the true rows of old tokens), "look" (surface forms and rows),
"examples" (how the tokens of a target are spelt).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from tokenarium.methods.tokenizers import bpe, zett, zett_lab
from tokenarium.models import lm_tiny
from tokenarium.study.experiments import Experiment

LOOK = "b"  # the target whose tensors are kept


def run(experiment: Experiment) -> None:
    """Make all parts."""
    p, root = experiment.parameters, experiment.root
    torch.manual_seed(0)
    targets = zett_lab.targets(root, p)
    texts = zett_lab.passages(root, p.documents.to_dict(), p.characters)
    pool = lm_tiny.documents(root, p.target_bytes.to_dict(), "validation")
    labs = {seed: zett_lab.Lab(root, seed, p.model, p.hypernet, zett_lab.device()) for seed in p.model_seeds}
    first = labs[p.model_seeds[0]]
    tokens = {name: list(map(len, zett_lab.encode(each, texts))) for name, each in _all(first, targets).items()}
    sizes = {name: len(each.tokens) for name, each in _all(first, targets).items()}
    shared = {name: sum(len(ids) == 1 for ids in first.pieces(each)) for name, each in targets.items()}
    experiment.record(
        "tokens",
        lambda: {
            "tokens": tokens,
            "bytes": [len(text.encode()) for text in texts],
            "vocabulary": sizes,
            "shared": shared,
            "firsts": [text[:40] for text in texts],
        },
    )
    for seed, lab in labs.items():
        body = lab.model.model
        experiment.arrays(
            f"documents-{seed}-original",
            lambda body=body, lab=lab: {
                "original": zett_lab.document_bits(body, lab.original_rows(), zett_lab.encode(lab.original, texts))
            },
        )
        for name, target in experiment.progress(targets.items(), f"seed {seed}, targets"):
            encoded = zett_lab.encode(target, texts)
            experiment.arrays(
                f"documents-{seed}-{name}",
                lambda body=body, lab=lab, target=target, encoded=encoded: {
                    arm: zett_lab.document_bits(body, lab.with_start(rows), encoded)
                    for arm, rows in lab.arms(target, pool).items()
                },
            )
            experiment.arrays(
                f"curve-{seed}-{name}",
                lambda body=body, lab=lab, target=target, encoded=encoded: {
                    str(step): zett_lab.document_bits(
                        body, lab.with_start(lab.predicted(lab.forms(target), file)), encoded[::2]
                    )
                    for step, file in lab.snapshots.items()
                },
            )
        experiment.arrays(f"known-{seed}", lambda lab=lab: known_rows(lab, p.known_vocabulary))
    experiment.arrays("look", lambda: look(first, targets[LOOK], p.look))
    experiment.record("examples", lambda: {name: spellings(first, each, p.look) for name, each in targets.items()})


def known_rows(lab: zett_lab.Lab, vocab_size: int) -> dict[str, Any]:
    """Old tokens spelt with the first merges of their own tokenizer: how near the made rows come to the true ones.

    Returns pieces (tokens,) and the cosines hypernet_in, hypernet_out, fvt_in, fvt_out (tokens,) of all tokens that
    take two pieces or more in the vocabulary of vocab_size tokens.
    """
    trained = bpe.Bpe(tuple(bpe.merges_of(lab.tokenizer)), bpe.gpt2_words())
    small = zett.model_tokenize(trained.truncate(vocab_size).tokenizer())
    spelling = [bpe.to_characters(token) for token in trained.vocabulary[:vocab_size]]
    later = [bpe.to_characters(token) for token in trained.vocabulary[vocab_size:]]
    pieces = [[lab.tokenizer.token_to_id(spelling[index]) for index in small(token)] for token in later]
    by_token = dict(zip(later, pieces, strict=True))
    forms = zett.surface_form_matrix(later, lab.maxlen, by_token.__getitem__, lab.pad_id, {})
    ids = torch.tensor([lab.tokenizer.token_to_id(token) for token in later])
    made = {"hypernet": lab.predicted(forms)}
    made["fvt"] = tuple(zett.mean_of_pieces(pieces, rows) for rows in lab.rows)
    cosines = {
        f"{method}_{side}": F.cosine_similarity(rows, own[ids]).cpu().numpy()
        for method, both in made.items()
        for side, rows, own in zip(("in", "out"), both, lab.rows, strict=True)
    }
    return {"pieces": np.array([len(each) for each in pieces], dtype=np.int32), **cosines}


def look(lab: zett_lab.Lab, target: zett_lab.Target, count: int) -> dict[str, Any]:
    """Surface forms, numbers of pieces and predicted rows of the last `count` tokens of a target."""
    forms, pieces = lab.forms(target), lab.pieces(target)
    rows_in, rows_out = lab.predicted(forms)
    return {
        "forms": forms[-count:],
        "pieces": np.array([len(ids) for ids in pieces[-count:]], dtype=np.int32),
        "rows_in": rows_in[-count:].cpu().numpy().copy(),
        "rows_out": rows_out[-count:].cpu().numpy().copy(),
    }


def spellings(lab: zett_lab.Lab, target: zett_lab.Target, count: int) -> dict[str, list[str]]:
    """The pieces of a target's last `count` tokens: token -> old tokens, as text; a blank in front is a low bar."""

    def text(token: str) -> str:
        return bpe.from_characters(token).decode("utf-8", "replace").replace(" ", "_")

    tokens = target.tokens[-count:]
    return {text(token): [text(lab.tokenizer.id_to_token(index)) for index in lab.tokenize(token)] for token in tokens}


def _all(lab: zett_lab.Lab, targets: dict[str, zett_lab.Target]) -> dict[str, zett_lab.Target]:
    return {"original": lab.original, **targets}
