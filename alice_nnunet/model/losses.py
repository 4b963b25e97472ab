"""The losses of Alice (Sec. 3). Tensors in, scalar out; the teacher is detached here."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.geometry import Triple
from alice_nnunet.model.tokens import patchify


def normalised_tokens(
    crop: Tensor, unit: Triple, together: str = "channel", eps: float = 1e-6
) -> Tensor:
    """Target of the reconstruction: each token's voxels with mean 0, variance 1 (Sec. 3.1, MAE).

    A token of one value (air) becomes zeros, not noise.

    Args:
        crop: (B, C, D, H, W).
        unit: voxels of a token (z, y, x).
        together: what has one mean and variance: each channel of a token (channel), the whole
            token (token), or nothing (none).
        eps: added to the variance.

    Returns:
        (B, N, C * unit voxels).
    """
    tokens = patchify(crop, unit).float()
    if together == "none":
        return tokens

    sets = crop.shape[1] if together == "channel" else 1
    values = tokens.unflatten(-1, (sets, -1))  # (B, N, sets, voxels)
    variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
    return ((values - mean) / (variance + eps).sqrt()).flatten(-2)


def voxels_of(
    predicted: Tensor, crop: Tensor, unit: Triple, together: str = "channel", eps: float = 1e-6
) -> Tensor:
    """Predictions as voxels of the crop: the inverse of normalised_tokens.

    The means and variances that are put back are those of the true tokens.

    Args:
        predicted: (B, N, C * unit voxels).
        crop: (B, C, D, H, W).
        unit: voxels of a token (z, y, x).
        together: see normalised_tokens.
        eps: added to the variance.

    Returns:
        (B, N, C * unit voxels).
    """
    if together == "none":
        return predicted.float()

    sets = crop.shape[1] if together == "channel" else 1
    true = patchify(crop, unit).float().unflatten(-1, (sets, -1))  # (B, N, sets, voxels)
    variance, mean = torch.var_mean(true, dim=-1, keepdim=True)
    values = predicted.float().unflatten(-1, (sets, -1))
    return (values * (variance + eps).sqrt() + mean).flatten(-2)


def has_content(crop: Tensor, unit: Triple) -> Tensor:
    """Whether a token has more than one value: in air, and outside the scan, it has one.

    Args:
        crop: (B, C, D, H, W).
        unit: voxels of a token (z, y, x).

    Returns:
        (B, N) bool.
    """
    tokens = patchify(crop, unit)
    return tokens.amax(-1) > tokens.amin(-1)


def reconstruction_loss(
    predicted: Tensor, crop: Tensor, counted: Tensor, unit: Triple, together: str = "channel"
) -> Tensor:
    """Mean squared error over the voxels of hidden tokens: Eq. 1 for one of the two crops.

    It is the mean over crops of the mean over a crop's tokens that count, so that equal parts of a
    batch average to the batch. With equal numbers of them it is the mean over all tokens.

    Args:
        predicted: (B, N, C * unit voxels).
        crop: (B, C, D, H, W).
        counted: (B, N), True where a token counts: where it is hidden and, as
            AliceSettings.reconstruct says, has content.
        unit: voxels of a token (z, y, x).
        together: see normalised_tokens.

    Returns:
        (). A crop without a token that counts adds 0. Leaving it out would wait for a GPU.
    """
    per_token = (
        (predicted.float() - normalised_tokens(crop, unit, together)).square().mean(-1)
    )  # (B, N)
    return masked_mean(per_token, counted)


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """l_s of Eqs. 2 and 5 as in BYOL: 2 - 2 cos, mean over all vectors (..., C).

    The result is 0 for equal directions and 4 for opposite ones.
    """
    return 2 - 2 * F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1).mean()


def info_nce_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    others: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """l_s of Eqs. 2 and 5 as in Table 7: each student finds its teacher among all of the batch.

    Args:
        student: (..., C), with every leading index one body part.
        teacher: the same shape.
        temperature: divides the similarities.
        others: (L, C), the teachers of the whole batch, if `teacher` is only a part of it.
        first: row of `others` where the part begins.
    """
    students = F.normalize(student.float(), dim=-1).flatten(0, -2)  # (M, C)
    choices = teacher.flatten(0, -2) if others is None else others
    teachers = F.normalize(choices.detach().float(), dim=-1)  # (M or L, C)

    own = torch.arange(first, first + len(students), device=student.device)
    return F.cross_entropy(students @ teachers.T / temperature, own)


def place_info_nce_loss(
    student: Tensor, keys: Tensor, match: Tensor, own: Tensor, temperature: float
) -> Tensor:
    """l_s of Eq. 2 token by token: a token finds its place in the matched crop, among all crops.

    Crops are compared at one place at a time. Where in a crop a token lies, which every branch
    knows, then tells nothing. With vectors of length 1:

        -log( exp(s_bn . k_mn / t) / sum_{j not own} exp(s_bn . k_jn / t) )

    Args:
        student: (B, N, C).
        keys: (K, N, C), of K crops; a key that is zero is not there.
        match: (B,), which of the K crops is matched to each student's.
        own: (B,), which is the student's own crop: neither right nor wrong.
        temperature: t, divides the similarities.

    Returns:
        (B, N), a loss for each token.
    """
    students = F.normalize(student.float(), dim=-1).transpose(0, 1)  # (N, B, C)
    choices = F.normalize(keys.detach().float(), dim=-1).permute(1, 2, 0)  # (N, C, K)
    logits = (students @ choices / temperature).transpose(0, 1)  # (B, N, K)

    is_own = F.one_hot(own, len(keys)).bool()[:, None]  # (B, 1, K)
    absent = ~keys.any(-1).T[None]  # (1, N, K)
    logits = logits.masked_fill(is_own | absent, -1e9)

    right = match[:, None].expand(-1, logits.shape[1])  # (B, N)
    losses = F.cross_entropy(logits.flatten(0, 1), right.flatten(), reduction="none")
    return losses.view_as(right)


def anatomy_loss(named: Tensor, vectors: Tensor, there: Tensor) -> Tensor:
    """l_an: 2 - 2 cos between what tokens name and the matcher's vectors, mean over all tokens.

    Outside the body there is nothing to name. The loss is 0 there, which counts in the mean, so
    that equal parts of a batch average to the batch.

    Args:
        named: (..., A).
        vectors: (..., A), of the tokens' places.
        there: (...), 1 where a place is in the body, else 0.

    Returns:
        0 (equal directions) to 4 (opposite ones).
    """
    cosines = F.cosine_similarity(named.float(), vectors.detach().float(), dim=-1)
    return ((2 - 2 * cosines) * there).mean()


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """l_s as in DINO: cross-entropy against the sharpened teacher, mean over all vectors (..., C).

    The teacher comes centered, see `Alice.center`.
    """
    return dino_losses(student, teacher, student_temperature, teacher_temperature).mean()


def dino_losses(
    student: Tensor, teacher: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """The same for each vector, (..., C) -> (...)."""
    targets = (teacher.detach().float() / teacher_temperature).softmax(-1)
    log_students = (student.float() / student_temperature).log_softmax(-1)
    return -(targets * log_students).sum(-1)


def masked_mean(values: Tensor, masked: Tensor) -> Tensor:
    """Mean over crops of the mean over a crop's hidden tokens; a crop without any adds 0.

    Args:
        values: (B, N).
        masked: (B, N), True where hidden.
    """
    number = masked.sum(-1).clamp(min=1)
    return ((values * masked).sum(-1) / number).mean()


@torch.no_grad()
def moments(features: Tensor) -> Tensor:
    """Mean and mean square of the l2-normalised features, for `spread`.

    The moments of equal parts of a batch average to those of the batch.

    Args:
        features: (..., C).

    Returns:
        (2, C), double precision.
    """
    vectors = F.normalize(features.float().flatten(0, -2), dim=-1).double()  # (M, C)
    return torch.stack([vectors.mean(0), vectors.square().mean(0)])


def spread(moments: Tensor, count: int) -> Tensor:
    """How far apart features are: std of the l2-normalised features times sqrt(C).

    Args:
        moments: (2, C), see `moments`.
        count: number of vectors that they are of.

    Returns:
        0 when all vectors are equal (collapse), about 1 when directions are spread evenly.
    """
    mean, square = moments
    variance = (square - mean.square()).clamp(min=0) * count / (count - 1)
    return (variance.sqrt().mean() * len(mean) ** 0.5).float()


@torch.no_grad()
def second_moments(features: Tensor) -> Tensor:
    """Mean and mean outer product of the l2-normalised features, for `effective_rank`.

    Those of equal parts of a batch, or of steps, average to those of the whole.

    Args:
        features: (..., C).

    Returns:
        (1 + C, C), double precision; row 0 is the mean.
    """
    vectors = F.normalize(features.float().flatten(0, -2), dim=-1).double()  # (M, C)
    mean = vectors.mean(0, keepdim=True)
    return torch.cat([mean, vectors.T @ vectors / len(vectors)])


@torch.no_grad()
def effective_rank(moments: Tensor) -> Tensor:
    """How many dimensions features use: exp(-sum p log p), p the shares of the variance by axis.

    `spread` cannot tell vectors that are all +u or -u from healthy ones; their rank is 1.

    Args:
        moments: (1 + C, C), see `second_moments`.

    Returns:
        1 when all lie on one line; C, or the number of vectors less one, when no direction is
        favoured; 0 when all are equal.
    """
    mean = moments[0]
    covariance = moments[1:] - torch.outer(mean, mean)
    variances = torch.linalg.eigvalsh(covariance).clamp(min=0)

    total = variances.sum()
    if total < 1e-10:
        return total.new_zeros(()).float()
    return torch.special.entr(variances / total).sum().exp().float()
