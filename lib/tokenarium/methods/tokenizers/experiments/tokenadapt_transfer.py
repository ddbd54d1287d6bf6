"""Puts every arm's rows on the base model and scores the texts, token by token."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tokenarium.data.tokenizers import token_bytes
from tokenarium.methods.tokenizers import swaplab, tokenadapt
from tokenarium.methods.tokenizers import tokenadapt_lab as lab
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    p, root = experiment.parameters, experiment.root
    made = lab.Made(root, experiment.profile)
    features = made.features()
    old = made.tokenizer(features.parameters["old"])
    model = lab.open_model(p.base, root, len(token_bytes(old)), experiment.seeds[0], p.dtype)
    start = model.get_input_embeddings().weight.detach()[_start_id(model)]
    if p.original:
        ids, lengths = _encoded(old, made.texts)
        experiment.arrays("original.text", lambda: _named(ids, lengths))
        experiment.arrays("original", lambda: _score(model, ids, start))
    for name, arms in p.runs.items():
        source = features.parameters["targets"][name]
        target = lab.Target.of(old, made.tokenizer(source), list(made.texts.values()))
        ids, lengths = _encoded(target.tokenizer, made.texts)
        experiment.arrays(f"{name}.text", lambda ids=ids, lengths=lengths: _named(ids, lengths))
        renumbered = {text: swaplab.renumber(target.kept, each) for text, each in ids.items()}
        swap = Swap(name, target, old, features, made.pool)
        if p.inside:
            experiment.arrays(f"{name}.rows", lambda swap=swap: _inside(swap, model, p.default))
            experiment.record(f"{name}.tokens", lambda swap=swap: _tokens(swap, p.default))
        for arm in experiment.progress(arms, name):
            settings = {**p.default, **p.arms[arm]}
            wanted = {text: renumbered[text] for text in settings.get("texts", renumbered)}

            def made_anew(swap: Swap = swap, settings: dict = settings, wanted: dict = wanted) -> dict:
                return _score(swap.model(model, settings), wanted, start)

            experiment.arrays(f"{name}.{arm}", made_anew)


class Swap:
    """All rows that one target's arms may have, and the base model with them."""

    def __init__(self, name: str, target: lab.Target, old: Tokenizer, features: lab.Features, pool: list[str]):
        self.target = target
        self._name, self._old, self._features, self._pool = name, old, features, pool
        self._strings = lab.decoded(old)
        self._known: dict[tuple[str, int], lab.Rows] = {}
        if len(features.places[name]) != len(target.fresh):
            raise ValueError(f"{name} has {len(target.fresh)} new tokens, but {len(features.places[name])} features")

    def rows(self, features: str, seed: int) -> lab.Rows:
        """features: "encoder"; "shuffled", dealt out among the distinct strings; "spelling"."""
        if (features, seed) not in self._known:
            if features == lab.SPELLING:
                phi = lab.spelling(self._strings), lab.spelling(self.target.strings)
            else:
                held = self._features.shuffled(seed) if features == "shuffled" else self._features
                phi = held.of("old"), held.of(self._name)
            self._known[features, seed] = lab.Rows(self.target, self._old, self._strings, *phi, self._pool)
        return self._known[features, seed]

    def model(self, model: Any, arm: Mapping[str, Any]) -> Any:
        """The model with the arm's rows: the same weights on the input's rows and, unless tied, on the output's."""
        rows, target = self.rows(arm["features"], arm["seed"]), self.target
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        matrices = [
            swaplab.assemble(target.kept, target.shared, each.detach(), rows.make(arm, each.detach()))
            for each in ([embedding] if head is embedding else [embedding, head])
        ]
        return swaplab.swap(model, *matrices)


def _start_id(model: torch.nn.Module) -> int:
    start = model.config.bos_token_id
    return int(start[0] if isinstance(start, list) else start)


def _score(
    model: torch.nn.Module, ids: Mapping[str, NDArray[np.int64]], start: torch.Tensor
) -> dict[str, NDArray[np.float64]]:
    return {name: swaplab.token_bits(model, each, start) for name, each in ids.items()}


def _encoded(tokenizer: Tokenizer, texts: Mapping[str, str]) -> tuple[dict, dict]:
    """Ids and bytes of each token, by text."""
    spelled = token_bytes(tokenizer)
    both = {name: swaplab.encode(tokenizer, text, spelled) for name, text in texts.items()}
    return {name: ids for name, (ids, _) in both.items()}, {name: lengths for name, (_, lengths) in both.items()}


def _named(ids: Mapping[str, Any], lengths: Mapping[str, Any]) -> dict[str, NDArray[np.int64]]:
    parts = {"ids": ids, "bytes": lengths}
    return {f"{name}.{part}": each for part, by in parts.items() for name, each in by.items()}


def _inside(swap: Swap, model: Any, default: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The default arm looked at from inside: pieces and neighbours with their weights, features and rows."""
    rows, target = swap.rows(default["features"], default["seed"]), swap.target
    old_rows = model.get_input_embeddings().weight.detach()
    near, similar = rows.neighbours(default["k"])
    width = max(map(len, target.pieces), default=0)
    pieces = np.full((len(target.fresh), width), -1, dtype=np.int64)
    weights = np.zeros(pieces.shape)
    for token, parts in enumerate(target.pieces):
        if parts:
            phi = rows.phi_new[token], rows.phi_old[parts]
            pieces[token, : len(parts)] = parts
            weights[token, : len(parts)] = tokenadapt.local_weights(*phi, *rows.lengths(token), default["tau"])
    neighbour_weights = [tokenadapt.neighbour_weights(each, default["tau"]) for each in similar]
    return {
        "fresh": target.fresh,
        "num_kept": np.array([len(target.kept)]),
        "num_shared": np.array([len(target.shared[0])]),
        "pieces": pieces,
        "w_local": weights,
        "nbr_idx": near.astype(np.int64),
        "nbr_similarity": np.ascontiguousarray(similar),
        "nbr_w": np.array(neighbour_weights).reshape(near.shape),
        "phi_new": rows.phi_new,
        "E_new": rows.make(default, old_rows).float().cpu().numpy(),
        "E_retok": rows.make({"kind": "retok"}, old_rows).float().cpu().numpy(),
    }


def _tokens(swap: Swap, default: Mapping[str, Any]) -> dict[str, Any]:
    """The new tokens, their pieces and their neighbours as text, in the order of the rows."""
    rows = swap.rows(default["features"], default["seed"])
    near, _ = rows.neighbours(default["k"])
    return {
        "strings": swap.target.strings,
        "pieces": [[rows.old_strings[piece] for piece in parts] for parts in swap.target.pieces],
        "neighbours": [[rows.old_strings[each] for each in row] for row in near.tolist()],
    }
