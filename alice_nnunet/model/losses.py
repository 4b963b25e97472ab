"""The losses of Alice (Sec. 3). Tensors in, scalar out; the teacher is detached here."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.model.tokens import patchify
from alice_nnunet.geometry import Triple


def normalised_tokens(crop: Tensor, unit: Triple, eps: float = 1e-6) -> Tensor:
    """Voxels of each token with mean 0 and variance 1: the target of the reconstruction (Sec. 3.1, as MAE).

    crop: (B, C, D, H, W) -> (B, N, C * unit voxels). A token of one value (air) becomes zeros, not noise.
    """
    tokens = patchify(crop, unit).float()
    variance, mean = torch.var_mean(tokens, dim=-1, keepdim=True)
    return (tokens - mean) / (variance + eps).sqrt()


def reconstruction_loss(predicted: Tensor, crop: Tensor, masked: Tensor, unit: Triple) -> Tensor:
    """Mean squared error over the voxels of hidden tokens, Eq. 1 for one of the two crops.

    predicted: (B, N, C * unit voxels); crop: (B, C, D, H, W); masked: (B, N), True where hidden. Raises ValueError if
    nothing is hidden.
    """
    if not masked.any():
        raise ValueError("Eq. 1 needs at least one hidden token, got none")
    per_token = (predicted.float() - normalised_tokens(crop, unit)).square().mean(-1)  # (B, N)
    return (per_token * masked).sum() / masked.sum()


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """l_s of Eqs. 2 and 5 as in BYOL: 2 - 2 cos, mean over all vectors. (..., C), (..., C) -> 0 (equal) to 4 (opposite)."""
    return 2 - 2 * F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1).mean()


def info_nce_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    others: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """l_s of Eqs. 2 and 5 as in Table 7: each student finds its teacher among all teachers of the batch.

    student, teacher: (..., C), with every leading index one body part. others: (L, C), the teachers of the whole batch where
    these are only a part of it, as rows first, first + 1, ... of them.
    """
    students = F.normalize(student.float(), dim=-1).flatten(0, -2)  # (M, C)
    choices = (teacher.flatten(0, -2) if others is None else others).detach()
    teachers = F.normalize(choices.float(), dim=-1)  # (M or L, C)
    own = torch.arange(first, first + len(students), device=student.device)
    return F.cross_entropy(students @ teachers.T / temperature, own)


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """l_s as in DINO: cross-entropy against the sharpened teacher, from which its center is taken already. (..., C)."""
    targets = (teacher.detach().float() / teacher_temperature).softmax(-1)
    return -(targets * (student.float() / student_temperature).log_softmax(-1)).sum(-1).mean()


@torch.no_grad()
def moments(features: Tensor) -> Tensor:
    """Mean and mean square of the l2-normalised features, for spread(). Those of equal parts of a batch average to those of
    the batch. (..., C) -> (2, C), double precision.
    """
    vectors = F.normalize(features.float().flatten(0, -2), dim=-1).double()  # (M, C)
    return torch.stack([vectors.mean(0), vectors.square().mean(0)])


def spread(moments: Tensor, count: int) -> Tensor:
    """How far apart features are: std over all vectors of the l2-normalised features, times sqrt(C).

    moments: (2, C), of count vectors. 0 when all are equal (collapse), about 1 when directions are spread evenly.
    """
    mean, square = moments
    variance = (square - mean.square()).clamp(min=0) * count / (count - 1)
    return (variance.sqrt().mean() * len(mean) ** 0.5).float()
