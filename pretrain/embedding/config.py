"""The configuration of one training of the anatomical embedding, and its presets."""

import dataclasses
import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Triple
from alice_nnunet.matcher.presets import COARSE_STRIDE, PRESETS
from alice_nnunet.settings import given_settings


@dataclass(frozen=True)
class EmbedConfig:
    """Everything that decides what a training computes. Defaults are SAM's where a comment does not say otherwise."""

    dataset: str  # DatasetXXX_NAME
    preset: str = "paper"
    network: dict = field(
        default_factory=dict
    )  # widths, channels, stem; context: channels alone counts
    features: str = "sam"  # sam: its network, by gradient descent; context: means of surroundings, in closed form (ours)
    voxel: float = 2.0  # mm of the network's input, along each axis
    patch_size: Triple = (32, 96, 96)  # voxels of it
    crop_size: Triple = (
        44,
        128,
        128,
    )  # both patches are drawn from it (ours): they overlap by more than a half
    step: float = 8.5  # mm between the nodes of the index; 4 in SAM, too large on the disk with 2 x 128 channels
    iterations: int = 20_000
    batch_size: int = 6  # volumes, two patches of each
    points: int = 1000  # in each volume
    hardest: int = 500  # negatives of each point
    temperature: float = 0.2  # 0.5 in SAM
    ignore_fine: float = 20.0  # mm around a point that are neither positive nor negative
    ignore_coarse: float = 40.0
    lr: float = 1e-3  # AdamW, cosine (SAM: SGD)
    weight_decay: float = 1e-4
    warmup_iterations: int = -1  # -1: 2.5 % of the iterations, SAM's 500
    clip_grad: float = 10.0
    validation_share: float = 0.1  # of the cases
    precision: str = "auto"  # auto: bf16 where the device has it; fp32; bf16
    seed: int = 0
    log_every: int = 50  # steps
    validate_every: int = 1000
    save_every: int = 500

    def __post_init__(self):
        if self.warmup_iterations == -1:
            object.__setattr__(self, "warmup_iterations", round(0.025 * self.iterations))
        for name in (
            "voxel",
            "step",
            "iterations",
            "batch_size",
            "points",
            "hardest",
            "temperature",
            "lr",
            "clip_grad",
            "log_every",
            "validate_every",
            "save_every",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.warmup_iterations < self.iterations:
            raise ValueError(
                f"warmup_iterations must be in [0, iterations), got {self.warmup_iterations} of {self.iterations}"
            )
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must be in [0, 1), got {self.validation_share}")
        if self.features not in ("sam", "context"):
            raise ValueError(f"features must be one of sam, context, got {self.features!r}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be one of auto, fp32, bf16, got {self.precision!r}")
        if any(p <= 0 or p % s for p, s in zip(self.patch_size, COARSE_STRIDE)):
            raise ValueError(
                f"patch_size must be a multiple of {COARSE_STRIDE}, got {self.patch_size}"
            )
        if any(not p <= c <= 1.5 * p for p, c in zip(self.patch_size, self.crop_size)):
            raise ValueError(
                f"crop_size must be at least patch_size and at most 1.5 times it, or patches may not overlap; "
                f"got {self.crop_size} and {self.patch_size}"
            )

    def as_dict(self) -> dict:
        """Plain values, as they go into JSON and checkpoints."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def embed_config(
    dataset: str, preset: str, assignments: list[str], file: Path | None = None
) -> EmbedConfig:
    """A preset with the given settings. Raises UserError for a name that does not exist or a value out of range."""
    known = {
        f.name: f.default
        for f in fields(EmbedConfig)
        if f.name not in ("dataset", "preset", "network")
    }
    known |= PRESETS["paper"].network
    given = given_settings(file, assignments, known, ("dataset", "preset"))
    settings = {**PRESETS[preset].run, **given}
    network = {name: settings.pop(name, value) for name, value in PRESETS[preset].network.items()}
    try:
        return EmbedConfig(dataset, preset, network, **settings)
    except ValueError as error:
        raise UserError(str(error)) from None


def embed_config_from_dict(saved: dict) -> EmbedConfig:
    """The config inside a checkpoint."""
    tuples = lambda values: {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return EmbedConfig(**{**tuples(saved), "network": tuples(saved["network"])})
