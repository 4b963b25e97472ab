"""The settings of one training of the matcher (the anatomical embedding).

They take the same path as those of a pretraining (see pretrain/training/config.py), with two
groups: `network` for the arguments of the network, `run` for the fields of `EmbedConfig`. This
module imports no torch.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alice_nnunet.errors import UserError
from alice_nnunet.matcher.presets import COARSE_STRIDE, PRESETS
from alice_nnunet.settings.ranges import require_one_of, require_positive
from alice_nnunet.settings.reading import OptionalValue, given_settings

WARMUP_SHARE = 0.025  # of the iterations: SAM's 500 of 20,000

IDENTITY = ("dataset", "preset")  # decided by the command's own options
NOT_SET = -1  # what users may type for the default warm-up instead of null


@dataclass(frozen=True)
class EmbedConfig:
    """Everything that decides what a training computes. Saved as config.json and in checkpoints.

    Defaults are SAM's where no other reason is given.

    Attributes:
        dataset: name of the dataset, DatasetXXX_NAME.
        preset: tiny, small or paper.
        network: widths, channels and stem of the network. With features context only channels
            counts.
        features: sam (SAM's network, by gradient descent) or context (means of surroundings, in
            closed form; ours).
        voxel: mm of the network's input, along each axis.
        patch_size: voxels (z, y, x) of a patch.
        crop_size: voxels (z, y, x) of the crop that both patches are drawn from (ours), so that
            they overlap by more than a half.
        step: mm between the nodes of the index. SAM has 4, which takes too much space on the disk
            with 2 x 128 channels.
        iterations: number of training steps.
        batch_size: volumes in a step; two patches are drawn from each.
        points: points in each volume.
        hardest: negatives of each point.
        temperature: of the contrastive losses; 0.5 in SAM.
        ignore_fine: mm around a point that are neither positive nor negative for fine vectors.
        ignore_coarse: the same for coarse vectors.
        lr: peak learning rate of AdamW, cosine (SAM: SGD).
        weight_decay: of AdamW.
        warmup_iterations: steps of linear warm-up. Default: 2.5 % of the iterations.
        clip_grad: largest norm of all gradients together.
        validation_share: share of the cases that is held out.
        precision: fp32, bf16 or auto: bf16 on a GPU that has it, fp32 on a CPU. A training records
            which of both it is, and goes on with that.
        seed: of all random numbers.
        log_every: steps between two log lines.
        validate_every: steps between two validations.
        save_every: steps between two checkpoints.
    """

    dataset: str
    preset: str = "paper"
    network: dict = field(default_factory=dict)
    features: str = "sam"
    voxel: float = 2.0
    patch_size: tuple[int, int, int] = (32, 96, 96)
    crop_size: tuple[int, int, int] = (44, 128, 128)
    step: float = 8.5
    iterations: int = 20_000
    batch_size: int = 6
    points: int = 1000
    hardest: int = 500
    temperature: float = 0.2
    ignore_fine: float = 20.0
    ignore_coarse: float = 40.0
    lr: float = 1e-3
    weight_decay: float = 1e-4
    # None is replaced by a number of steps as soon as the config is made.
    warmup_iterations: int = None  # type: ignore[assignment]
    clip_grad: float = 10.0
    validation_share: float = 0.1
    precision: str = "auto"
    seed: int = 0
    log_every: int = 50
    validate_every: int = 1000
    save_every: int = 500

    def __post_init__(self):
        if self.warmup_iterations is None:
            object.__setattr__(self, "warmup_iterations", round(WARMUP_SHARE * self.iterations))

        require_positive(self, "voxel", "step", "iterations", "batch_size", "points", "hardest")
        require_positive(self, "temperature", "lr", "clip_grad")
        require_positive(self, "log_every", "validate_every", "save_every")
        require_one_of(self, "features", ("sam", "context"))
        require_one_of(self, "precision", ("auto", "fp32", "bf16"))

        if not 0 <= self.warmup_iterations < self.iterations:
            raise ValueError(
                "warmup_iterations must be in [0, iterations), "
                f"got {self.warmup_iterations} of {self.iterations}"
            )
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must be in [0, 1), got {self.validation_share}")

        if any(size <= 0 or size % n for size, n in zip(self.patch_size, COARSE_STRIDE)):
            raise ValueError(
                f"patch_size must be a multiple of {COARSE_STRIDE}, got {self.patch_size}"
            )
        if any(not p <= c <= 1.5 * p for p, c in zip(self.patch_size, self.crop_size)):
            raise ValueError(
                "crop_size must be at least patch_size and at most 1.5 times patch_size, or "
                f"patches may not overlap; got {self.crop_size} and {self.patch_size}"
            )

    def as_dict(self) -> dict:
        """Plain values, as they go into JSON and checkpoints."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def known_settings() -> dict[str, dict[str, Any]]:
    """For both groups the names that --set accepts, with an example of the kind of value."""
    run = {f.name: f.default for f in dataclasses.fields(EmbedConfig)}
    for name in (*IDENTITY, "network"):
        del run[name]

    return {
        "network": PRESETS["paper"].network,
        "run": {**run, "warmup_iterations": OptionalValue(NOT_SET)},
    }


def embed_config(
    dataset: str, preset: str, assignments: Sequence[str] = (), file: Path | None = None
) -> EmbedConfig:
    """The config of a training: the preset's settings, then those of a file, then `name=value`.

    Args:
        dataset: DatasetXXX_NAME.
        preset: tiny, small or paper.
        assignments: words `name=value` of the command line.
        file: JSON file of settings, such as the config.json of another training.

    Raises:
        UserError: a name does not exist, a value is of the wrong kind or out of range, the file
            cannot be read.
    """
    known = known_settings()
    given = given_settings(file, list(assignments), {**known["network"], **known["run"]}, IDENTITY)
    if given.get("warmup_iterations") == NOT_SET:
        given["warmup_iterations"] = None

    network = {**PRESETS[preset].network}
    run = {**PRESETS[preset].run}
    for name, value in given.items():
        group = network if name in known["network"] else run
        group[name] = value

    try:
        return EmbedConfig(dataset, preset, network, **run)
    except ValueError as error:
        raise UserError(str(error)) from None


def embed_config_from_dict(saved: dict) -> EmbedConfig:
    """The config that a checkpoint holds."""
    network = {name: as_tuple(value) for name, value in saved["network"].items()}
    run = {name: as_tuple(value) for name, value in saved.items() if name != "network"}
    return EmbedConfig(network=network, **run)


def as_tuple(value: Any) -> Any:
    """A list as a tuple: JSON knows only lists."""
    return tuple(value) if isinstance(value, list) else value
