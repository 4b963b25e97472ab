"""The configuration of one pretraining: defaults of the paper, presets, a JSON file and --set name=value."""

import dataclasses
import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from alice_nnunet.errors import UserError
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.method import Method
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.settings import given_settings

MATCHERS = ("embedding", "body", "same")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides what a run computes. Saved as config.json and inside each checkpoint."""

    dataset: str  # DatasetXXX_NAME
    encoder: str = "nnformer"
    preset: str = "paper"
    encoder_arguments: dict = field(
        default_factory=dict
    )  # in_channels, crop_size (z, y, x), width, ...
    method: Method = Method()
    iterations: int = 100_000
    batch_size: int = 8  # pairs for each GPU and step
    lr: float = 5e-5  # AdamW, peak
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup_iterations: int = (
        -1
    )  # -1: 2.8 % of the iterations, the paper's 100 epochs of 1800 volumes in 64s
    clip_grad: float = 3.0  # norm of all gradients
    ema: float = 0.996  # momentum of the target at the start; 1 at the end
    matcher: str = "embedding"  # how the same body part is found in another person; same: the same volume twice
    min_score: float = 0.7  # pairs of crops that match worse are rejected
    max_return: float = (
        0.0  # mm; embedding: so are those whose match leads back further away; 0: not checked
    )
    validation_share: float = 0.1  # of the cases (A.1)
    precision: str = "auto"  # auto: bf16 where the device has it; fp32; bf16
    accumulate: int = (
        1  # parts that a batch is computed in, one after the other; the step is the same
    )
    checkpoint_blocks: bool = False  # encoder and decoder keep only each block's input and compute the rest again: less memory, more time
    compile: str = "auto"  # torch.compile of the ViT's and the decoder's blocks: on, off; auto: on CUDA for vit
    max_nonfinite: int = (
        5  # steps in a row whose loss or gradient is no number, after which a run stops
    )
    workers: int = -1  # processes that load data, for each GPU; -1: none on a CPU, else -np
    seed: int = 0
    log_every: int = 50  # steps
    validate_every: int = 1000
    probe_every: int = 1000  # 0: never; do held-out crops find their match among probe_pairs?
    probe_pairs: int = 64
    save_every: int = 1000

    def __post_init__(self):
        if self.warmup_iterations == -1:
            object.__setattr__(self, "warmup_iterations", round(0.028 * self.iterations))
        positive = (
            "iterations",
            "batch_size",
            "lr",
            "clip_grad",
            "accumulate",
            "max_nonfinite",
            "log_every",
            "validate_every",
            "probe_pairs",
            "save_every",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.warmup_iterations < self.iterations:
            raise ValueError(
                f"warmup_iterations must be in [0, iterations), got {self.warmup_iterations} of {self.iterations}"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate must divide batch_size, got {self.accumulate} and {self.batch_size}"
            )
        if self.accumulate > 1 and (
            self.method.similarity == "infonce" or self.method.head == "byol"
        ):
            raise ValueError(
                "accumulate must be 1 for similarity infonce and for head byol, which compare every pair of a batch with all others"
            )
        if self.probe_every < 0:
            raise ValueError(f"probe_every must not be negative, got {self.probe_every}")
        if self.workers < -1:
            raise ValueError(
                f"workers must be at least 0, or -1 for as many as fit, got {self.workers}"
            )
        if self.max_return < 0:
            raise ValueError(f"max_return must not be negative, got {self.max_return}")
        for name in ("ema", "min_score", "validation_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name, allowed in (
            ("precision", ("auto", "fp32", "bf16")),
            ("compile", ("auto", "on", "off")),
            ("matcher", MATCHERS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )

    def as_dict(self) -> dict:
        """Plain values, as they go into JSON and checkpoints."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def read_settings(
    preset: str, encoder: str, file: Path | None, assignments: list[str]
) -> tuple[dict, dict]:
    """Flat names and values: the preset's, then those of the JSON file, then name=value. Returns all, and the given ones.

    Raises UserError for a name that does not exist, a value of the wrong kind, an unreadable file.
    """
    chosen = PRESETS[encoder][preset]
    defaults = {**chosen.encoder, "crop_size": chosen.crops.size, **chosen.method, **chosen.run}
    given = given_settings(
        file,
        assignments,
        known_settings(encoder, preset),
        ("dataset", "encoder", "preset", "in_channels"),
    )
    return {**defaults, **given}, given


def known_settings(encoder: str, preset: str) -> dict:
    """Names that --set accepts, with an example of the kind of value."""
    run = {
        f.name: f.default
        for f in fields(PretrainConfig)
        if f.name not in ("dataset", "encoder", "preset", "encoder_arguments", "method")
    }
    return {
        **run,
        **dataclasses.asdict(Method()),
        **PRESETS[encoder][preset].encoder,
        "crop_size": (0, 0, 0),
    }


def as_tuples(value):
    """Lists, also those inside lists, as tuples: what JSON made lists of."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def make_config(
    dataset: str, encoder: str, preset: str, in_channels: int, settings: dict
) -> PretrainConfig:
    """The config of a run from flat settings. Raises UserError where a value is out of range."""
    names = lambda cls: {f.name for f in fields(cls)}
    pick = lambda wanted: {name: value for name, value in settings.items() if name in wanted}
    arguments = {
        "in_channels": in_channels,
        **pick({"crop_size", *PRESETS[encoder]["paper"].encoder}),
    }
    try:
        with torch.device("meta"):
            build_encoder(
                encoder, arguments
            )  # says what is wrong with the arguments before anything is touched
        return PretrainConfig(
            dataset,
            encoder,
            preset,
            arguments,
            Method(**pick(names(Method))),
            **pick(names(PretrainConfig)),
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def config_from_dict(saved: dict) -> PretrainConfig:
    """The config inside a checkpoint."""
    arguments = {name: as_tuples(value) for name, value in saved["encoder_arguments"].items()}
    return PretrainConfig(
        **{
            **saved,
            "method": Method(**saved["method"]),
            "encoder_arguments": arguments,
            "betas": tuple(saved["betas"]),
        }
    )
