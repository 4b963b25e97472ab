"""What a user asks of alice-plan. Importing it is cheap, so the command can check its arguments."""

from dataclasses import dataclass, field

from alice_nnunet.checks.findings import NO_DECISIONS, Decisions

# What no estimate here counts, nor that of alice-pretrain --dry-run, from docs/results/gpu.md: GB
# (1e9 bytes) for the CUDA context and libraries, and the most that a step took beyond the estimate
# of its tensors, as a share of it (workspaces of convolutions).
CUDA_GB = 1.0
WORKSPACES = 0.1


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The arguments of alice-plan. None means: alice-plan chooses.

    Attributes:
        dataset: ID or name of a labeled dataset.
        weights: checkpoint, exported folder or Hugging Face repository.
        name: of the plans.
        spacing: "pretrained", "dataset" for nnU-Net's choice, or mm (z, y, x).
        patch: patch size in voxels (z, y, x).
        batch: batch size.
        gpu_memory: GB that batch and patch are to fit in; None for no limit.
        epochs: length of a training.
        iterations: of an epoch.
        learning_rate: at the end of the warm-up.
        settings: other entries of the recipe, see recipes.SETTINGS.
        processes: for the checks and nnU-Net's fingerprint.
        decisions: what to do with files that leave a choice.
    """

    dataset: str
    weights: str
    name: str
    spacing: str | list[float] = "pretrained"
    patch: list[int] | None = None
    batch: int | None = None
    gpu_memory: float | None = None
    epochs: int | None = None
    iterations: int | None = None
    learning_rate: float | None = None
    settings: dict = field(default_factory=dict)
    processes: int = 1
    decisions: Decisions = NO_DECISIONS
