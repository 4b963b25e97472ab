"""What alice-plan chooses, each with its reason: spacing, patch, batch. And their memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.pretrained import PretrainedEncoder
from alice_nnunet.finetuning.recipes import RECIPES
from alice_nnunet.memory import GB
from alice_nnunet.model.encoders.registry import unit_of
from alice_nnunet.planning.labeled_dataset import LabeledDataset
from alice_nnunet.planning.request import CUDA_GB, WORKSPACES, PlanRequest
from alice_nnunet.planning.sizes import (
    Reduction,
    batch_within,
    check_patch,
    fit_memory,
    patch_within,
    sizes_at,
)
from alice_nnunet.text import millimetres, voxels

SMALL_BATCH = 2  # of presets that do not fill a GPU; paper presets have the recipe's


@dataclass(frozen=True)
class PlanChoice:
    """A value and, for the report, the reason for it."""

    value: Any
    reason: str


@dataclass(frozen=True)
class PlanChoices:
    """All choices of alice-plan.

    Attributes:
        spacing: mm (z, y, x).
        patch: voxels (z, y, x).
        batch: patches.
        memory: bytes of the tensors of a training step.
        median_size: of the cases at that spacing, voxels (z, y, x).
    """

    spacing: PlanChoice
    patch: PlanChoice
    batch: PlanChoice
    memory: PlanChoice
    median_size: np.ndarray


def choose(
    request: PlanRequest,
    encoder: PretrainedEncoder,
    dataset: LabeledDataset,
    memory: Callable[[list[int], int], int],
) -> PlanChoices:
    """Choose spacing, patch and batch.

    Args:
        request: what is given stays, the rest is chosen.
        encoder: to fine-tune.
        dataset: to fine-tune on.
        memory: (patch, batch) -> bytes of the tensors of a training step.

    Raises:
        UserError: what is given is not possible, or does not fit the GPU.
    """
    spacing = choose_spacing(request.spacing, encoder.data["spacing"], dataset)
    sizes = sizes_at(spacing.value, dataset.sizes, dataset.spacings)
    median = np.median(sizes, 0)

    patch = choose_patch(request.patch, encoder, median)
    batch = choose_batch(request.batch, encoder, patch.value, float(np.prod(median)) * len(sizes))
    if request.gpu_memory is None:
        limit = "no -gpu_memory is given, so patch and batch were not reduced to fit a GPU"
    else:
        limit = f"-gpu_memory {request.gpu_memory:g}"
        reduction = Reduction(
            unit_of(encoder.name, encoder.arguments),
            median,
            patch=not request.patch,
            batch=not request.batch,
        )
        budget = (request.gpu_memory - CUDA_GB) / (1 + WORKSPACES) * GB
        fitted_patch, fitted_batch = fit_memory(patch.value, batch.value, budget, memory, reduction)
        if fitted_patch != patch.value:
            patch = reduced(patch, fitted_patch, f"{voxels(patch.value)} to fit {limit}")
        if fitted_batch != batch.value:
            batch = reduced(batch, fitted_batch, f"{batch.value} to fit {limit}")

    needed = PlanChoice(memory(patch.value, batch.value), limit)
    return PlanChoices(spacing, patch, batch, needed, median)


def reduced(choice: PlanChoice, value: Any, origin: str) -> PlanChoice:
    return PlanChoice(value, f"{choice.reason}; reduced from {origin}")


def choose_spacing(
    asked: str | list[float], pretrained: list[float], dataset: LabeledDataset
) -> PlanChoice:
    """Spacing in mm (z, y, x).

    Args:
        asked: see PlanRequest.
        pretrained: the pretraining's.
        dataset: to fine-tune on.

    Raises:
        UserError: nnU-Net's spacing is asked for and the cases share no order of axes.
    """
    if asked == "pretrained":
        return PlanChoice(list(pretrained), "the pretraining's")

    if isinstance(asked, str):  # "dataset"
        if dataset.target_spacing is None:
            raise UserError(
                f"the cases of {dataset.name} are stored along different axes, so nnU-Net's target "
                f"spacing has no order that fits all; give three numbers instead: -spacing Z Y X"
            )
        spacing = dataset.target_spacing
        source = "nnU-Net's for this dataset"
    else:
        spacing = [float(length) for length in asked]
        source = "as given"

    factors = voxels(f"{p / s:.2f}" for s, p in zip(spacing, pretrained))
    return PlanChoice(
        list(spacing),
        f"{source}; the pretraining's was {millimetres(pretrained)}, so organs have {factors} "
        f"times the voxels that the encoder knows",
    )


def choose_patch(
    given: list[int] | None, encoder: PretrainedEncoder, median: np.ndarray
) -> PlanChoice:
    """Patch size in voxels (z, y, x).

    Args:
        given: by the user, or None.
        encoder: to fine-tune.
        median: size of the cases.

    Raises:
        UserError: the given one is not a multiple of the encoder's unit.
    """
    unit = unit_of(encoder.name, encoder.arguments)
    if given:
        check_patch(given, unit)
        return PlanChoice(list(given), "as given")

    if encoder.preset == "paper":
        largest = RECIPES[encoder.name].patch_size
    else:
        largest = tuple(encoder.arguments["crop_size"])

    return PlanChoice(
        patch_within(largest, median, unit),
        f"{source_of_sizes(encoder)} {voxels(largest)}, each axis at most the median volume, "
        f"{voxels(median)}, rounded up to the encoder's unit, {voxels(unit)}",
    )


def choose_batch(
    given: int | None, encoder: PretrainedEncoder, patch: list[int], dataset_voxels: float
) -> PlanChoice:
    """Batch size.

    Args:
        given: by the user, or None.
        encoder: to fine-tune.
        patch: voxels.
        dataset_voxels: of all cases together.
    """
    if given:
        return PlanChoice(given, "as given")

    wanted = RECIPES[encoder.name].batch_size if encoder.preset == "paper" else SMALL_BATCH
    return PlanChoice(
        batch_within(wanted, patch, dataset_voxels),
        f"{source_of_sizes(encoder)} {wanted}, but no more than 5 % of the dataset's voxels in a "
        f"batch, and no fewer than 2 patches",
    )


def source_of_sizes(encoder: PretrainedEncoder) -> str:
    if encoder.preset == "paper":
        return "the recipe's (Alice, Table 8)"
    return f"the {encoder.preset} preset's"
