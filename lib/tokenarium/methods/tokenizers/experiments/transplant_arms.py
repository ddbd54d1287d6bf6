"""The arms that the arena of transplants lacks: TokenAdapt's targets and texts, the other papers' rows.

Parts: "<target>.<arm>" (text -> bits of every token, as the experiments of TokenAdapt have them) and "about" (how many
old rows make up a new one, target -> arm -> mean; how many tokens get a new row, and how many of those and of the
shared ones the pool of text has).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from tokenarium.data.tokenizers import token_bytes
from tokenarium.methods.tokenizers import omp_transplant, swaplab, vocab_expansion
from tokenarium.methods.tokenizers import tokenadapt_lab as lab
from tokenarium.study.experiments import Experiment

LEFT = 1e-3  # of a target's length; below it a residual is rounding
DONOR_DIM = 24  # of the random rows that stand for a donor's at profile smoke


def run(experiment: Experiment) -> None:
    """Make all parts."""
    p = experiment.parameters
    makers = open_makers(experiment.root, experiment.profile, p, experiment.seeds[0])
    about: dict[str, dict[str, Any]] = {}
    for name, arms in p.runs.items():
        maker = makers[name]
        encoded = maker.encoded()
        support = {}
        for arm in experiment.progress(arms, name):

            def score(maker: Maker = maker, settings: Mapping[str, Any] = p.arms[arm], encoded: dict = encoded) -> dict:
                model = swaplab.swap(maker.base, maker.assembled(maker.rows(settings)))
                return {text: swaplab.token_bits(model, ids, maker.start) for text, ids in encoded.items()}

            experiment.arrays(f"{name}.{arm}", score)
            support[arm] = maker.support(p.arms[arm])
        about[name] = {"support": support, **maker.counts()}
    experiment.record("about", lambda: about)


def open_makers(root: Path, profile: str, parameters: Mapping[str, Any], seed: int) -> dict[str, Maker]:
    """A maker for each of `runs`; all share one base model.

    parameters: base ("tiny" or a model), dtype, donors (target -> the model whose tokenizer it is, or "tiny"), runs.
    """
    made = lab.Made(root, profile)
    features = made.features()
    old = made.tokenizer(features.parameters["old"])
    base = lab.open_model(parameters["base"], root, len(token_bytes(old)), seed, parameters["dtype"])
    donors = parameters["donors"]
    return {name: Maker(root, name, made, features, old, base, donors.get(name)) for name in parameters["runs"]}


class Maker:
    """Rows for one target's new tokens, by every way to make them, and what is needed to score them."""

    def __init__(
        self, root: Path, name: str, made: lab.Made, features: lab.Features, old: Any, base: Any, donor: str | None
    ):
        self.root, self.name, self.base, self.donor = root, name, base, donor
        self.texts, self.pool = made.texts, made.pool
        self.target = lab.Target.of(
            old, made.tokenizer(features.parameters["targets"][name]), list(self.texts.values())
        )
        self.old_rows = base.get_input_embeddings().weight.detach()
        start = base.config.bos_token_id
        self.start = self.old_rows[start[0] if isinstance(start, list) else start]
        phi = features.of("old"), features.of(name)
        self.lab_rows = lab.Rows(self.target, old, lab.decoded(old), *phi, self.pool)
        self._paths: dict[str, omp_transplant.Path] = {}

    def encoded(self) -> dict[str, NDArray[np.int64]]:
        """Text -> numbers of rows."""
        found = {
            name: self.target.tokenizer.encode(text, add_special_tokens=False).ids for name, text in self.texts.items()
        }
        return {name: swaplab.renumber(self.target.kept, ids) for name, ids in found.items()}

    def assembled(self, new_rows: Tensor) -> Tensor:
        """(V', d): the shared tokens' rows and the new ones (U, d)."""
        return swaplab.assemble(self.target.kept, self.target.shared, self.old_rows, new_rows)

    def counts(self) -> dict[str, int]:
        """How many new tokens there are, and how many of them and of the shared ones the pool has."""
        seen = occurring(self.pooled)
        return {
            "new": len(self.target.fresh),
            "new_in_pool": int(np.isin(self.target.fresh, seen).sum()),
            "shared_in_pool": int(np.isin(self.target.shared[0], seen).sum()),
        }

    def rows(self, arm: Mapping[str, Any]) -> Tensor:
        """The new rows (U, d) of an arm {"kind", ...}.

        kinds: those of `tokenadapt_lab.Rows.make`; "normal" (seed), by dimension; "focus"; and in a space, "encoder" or
        "donor": "omp" (k), "neighbours" (k), weighted by 1 / distance, and "linear".
        """
        kind, count = arm["kind"], len(self.target.fresh)
        if kind == "normal":
            return swaplab.normal(self.old_rows, count, arm["seed"])
        if kind == "focus":
            return torch.from_numpy(self.focus[0]).to(self.old_rows)
        if kind == "omp":
            path, rows = self._path(arm["space"], arm["k"]), self._space(arm["space"])[2]
            return omp_transplant.combine(path.indices[:, : arm["k"]], stopped(path, arm["k"]), rows)
        if kind == "neighbours":
            return swaplab.nearest(*self._space(arm["space"]), arm["k"])
        if kind == "linear":
            return swaplab.least_squares(*self._space(arm["space"]))
        return self.lab_rows.make(arm, self.old_rows)

    def support(self, arm: Mapping[str, Any]) -> float:
        """Old rows in a new one, mean over the new tokens; 0 for noise, all of them for the mean and the linear map."""
        kind, pieces = arm["kind"], float(np.mean([len(each) for each in self.target.pieces]))
        if kind in ("normal", "random"):
            return 0.0
        if kind in ("omp", "neighbours"):
            return float(arm["k"])
        if kind == "focus":
            return float(self.focus[1].mean())
        if kind == "adapt":
            return pieces * (arm["lam"] < 1) + arm["k"] * (arm["lam"] > 0)
        return pieces if kind in ("retok", "align") else float(len(self.old_rows))

    @cached_property
    def pooled(self) -> list[list[int]]:
        """The pool in the new tokens."""
        found = self.target.tokenizer.encode_batch(self.pool, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    @cached_property
    def focus(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """FOCUS-like rows (U, d), and how many old rows are in each.

        As in `vocab_expansion`: sparsemax of the cosines between PPMI vectors of the new and of the shared tokens in
        the pool. A token that the pool does not hold takes a normal row, as FOCUS does without a vector.
        """
        seen, vectors = vocab_expansion.ppmi_vectors(self.pooled)
        made = swaplab.normal(self.old_rows, len(self.target.fresh), 0).double().numpy()
        support = np.zeros(len(made), dtype=np.int64)
        shared = dict(zip(*map(np.ndarray.tolist, self.target.shared), strict=True))
        known = np.isin(seen, self.target.shared[0])
        places = {index: place for place, index in enumerate(self.target.fresh.tolist())}
        new = np.flatnonzero(np.isin(seen, self.target.fresh))
        if known.any() and len(new):
            weights = vocab_expansion.sparsemax(vectors[new] @ vectors[known].T)
            rows = self.old_rows[[shared[index] for index in seen[known].tolist()]].double().numpy()
            where = [places[index] for index in seen[new].tolist()]
            made[where], support[where] = weights @ rows, (weights > 0).sum(axis=1)
        return made, support

    def _path(self, space: str, k: int) -> omp_transplant.Path:
        if space not in self._paths or self._paths[space].indices.shape[1] < k:
            targets, points, _ = self._space(space)
            self._paths[space] = omp_transplant.pursue(targets, points, k)
        return self._paths[space]

    def _space(self, space: str) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of the new tokens (U, D) and of old ones (N, D), and the rows of the latter (N, d)."""
        if space == "donor":
            return self._donor
        if space != "encoder":
            raise ValueError(f"a space is 'encoder' or 'donor', got {space!r}")
        return self._encoder

    @cached_property
    def _encoder(self) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features. Old tokens that the encoder cannot tell apart are one point, with the mean of their rows."""
        new, old = (torch.from_numpy(each) for each in (self.lab_rows.phi_new, self.lab_rows.phi_old))
        points, owners, counts = torch.unique(old, dim=0, return_inverse=True, return_counts=True)
        sums = self.old_rows.new_zeros(len(points), self.old_rows.shape[1], dtype=torch.float64)
        rows = sums.index_add_(0, owners, self.old_rows.double()) / counts[:, None]
        return F.normalize(new, dim=1), F.normalize(points, dim=1), rows.to(self.old_rows)

    @cached_property
    def _donor(self) -> tuple[Tensor, Tensor, Tensor]:
        """The donor's rows of the new and of the shared tokens."""
        if self.donor is None:
            raise ValueError(f"{self.name} has no donor")
        shared_new, shared_old = self.target.shared
        count = len(token_bytes(self.target.tokenizer))
        if self.donor == lab.TINY:
            matrix = torch.randn(count, DONOR_DIM, generator=torch.Generator().manual_seed(0))
        else:
            with safe_open(self.root / self.donor / "model.safetensors", "pt") as file:
                matrix = file.get_tensor("model.embed_tokens.weight").float()
        return matrix[self.target.fresh], matrix[shared_new], self.old_rows[shared_old]


def stopped(path: omp_transplant.Path, k: int) -> Tensor:
    """Coefficients (U, k) of a pursuit that stops where nothing is left to describe; 0 from there on.

    The encoder gives some new tokens the very features of an old one, which one point describes to the last bit.
    """
    left = path.residuals()[:, : k - 1]
    steps = 1 + (left > LEFT).long().cumprod(dim=1).sum(dim=1)
    made = path.projections.new_zeros(len(steps), k)
    for count in steps.unique().tolist():
        held = steps == count
        parts = (each[held] for each in (path.indices, path.triangle, path.projections, path.norms))
        made[held, :count] = omp_transplant.Path(*parts).coefficients(count)
    return made


def occurring(texts: list[list[int]]) -> NDArray[np.int64]:
    """The ids that occur, sorted."""
    return np.unique(np.concatenate([np.asarray(ids, dtype=np.int64) for ids in texts]))
