"""What one image, or one query, tells about a reduced model.

Every function returns one float64 number per image, so that the caller can keep them all and put a paired
bootstrap on any comparison. Agreement and KL against the unreduced model see changes that accuracy on an easy
data set hides.
"""

import torch
from torch import Tensor


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """1.0 where the largest logit is the label's, else 0.0. logits: (images, classes); labels: (images,) int.

    Returns (images,) float64. Raises ValueError for shapes that do not fit, logits that are not finite, and
    labels outside the classes.
    """
    _check_matrices(logits=logits)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}")
    return (logits.argmax(dim=1) == labels.to(logits.device)).double()


def agreement(logits: Tensor, full_logits: Tensor) -> Tensor:
    """1.0 where the reduced and the unreduced model choose the same class, both (images, classes), else 0.0.

    Returns (images,) float64. Raises ValueError for different shapes or logits that are not finite.
    """
    _check_matrices(logits=logits, full_logits=full_logits)
    return (logits.argmax(dim=1) == full_logits.argmax(dim=1)).double()


def kl(full_logits: Tensor, reduced_logits: Tensor) -> Tensor:
    """KL(full || reduced) of the class probabilities in nats, per image.

    full_logits, reduced_logits: (images, classes). Computed in float64: near the unreduced model the value is
    the small difference of large terms. Returns (images,) float64, at least 0. Raises ValueError for
    different shapes or logits that are not finite.
    """
    _check_matrices(full_logits=full_logits, reduced_logits=reduced_logits)
    full = full_logits.double().log_softmax(dim=1)
    reduced = reduced_logits.double().log_softmax(dim=1)
    return (full.exp() * (full - reduced)).sum(dim=1).clamp(min=0)


def cls_error(full_feature: Tensor, reduced_feature: Tensor) -> Tensor:
    """Relative L2 error ||full - reduced|| / ||full|| of the final class-token feature, both (images, dim).

    Returns (images,) float64. Raises ValueError for different shapes, values that are not finite, and
    features of length zero, for which the relative error has no meaning.
    """
    _check_matrices(full_feature=full_feature, reduced_feature=reduced_feature)
    full, reduced = full_feature.double(), reduced_feature.double()
    norm = full.norm(dim=1)
    if bool((norm == 0).any()):
        raise ValueError(f"full_feature[{int((norm == 0).nonzero()[0])}] has length zero")
    return (full - reduced).norm(dim=1) / norm


def rank(scores: Tensor, target: Tensor) -> Tensor:
    """Place of the wanted candidate of every query, 1 = first.

    scores: (queries, candidates), larger is better; target: (queries,) int, the wanted candidate. Ties count
    against us: a candidate with the same score stands before the wanted one, so that a model which scores all
    alike gets the last place and not the first. Returns (queries,) int64. Raises ValueError for shapes that
    do not fit, scores that are not finite, and targets that are no candidates.
    """
    _check_matrices(scores=scores)
    if target.shape != scores.shape[:1]:
        raise ValueError(f"target {tuple(target.shape)} does not fit scores {tuple(scores.shape)}")
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < scores.shape[1]:
        raise ValueError(f"target must lie in 0..{scores.shape[1] - 1}")
    wanted = scores.gather(1, target.to(scores.device)[:, None].long())
    return (scores >= wanted).sum(dim=1)


def recall_at_1(scores: Tensor, target: Tensor) -> Tensor:
    """1.0 where the wanted candidate alone has the best score, else 0.0; arguments and errors as `rank`.

    Returns (queries,) float64.
    """
    return (rank(scores, target) == 1).double()


def reciprocal_rank(scores: Tensor, target: Tensor) -> Tensor:
    """1 / rank of the wanted candidate, whose mean is the MRR; arguments and errors as `rank`.

    Returns (queries,) float64.
    """
    return 1.0 / rank(scores, target).double()


def _check_matrices(**tensors: Tensor) -> None:
    """Two-dimensional, finite, and all of one shape; the keyword names stand in the message."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"matrices of one shape are needed, got {got}")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite, but holds NaN or infinity")
