"""The settings of a pretraining, and their path from the command line to the model.

1. A user gives flat names: `--set lr=1e-4 width=384 mask_ratio=0.5`, or a JSON file (`-config`).
   No name occurs in two groups.
2. `read_settings` checks names and kinds of values, and sorts them into three groups, each on top
   of what the preset (`alice_nnunet.model.presets`) says:
       encoder   `crop_size` and the arguments of the encoder's class
       method    the fields of the method's settings (masking, losses, heads, decoder)
       run       the fields of `PretrainConfig` below (steps, optimizer, matcher, files)
   `known_settings` declares which name belongs to which group.
3. `make_config` adds what the data decides, the number of channels, builds the encoder once on no
   device to check its arguments, and combines all in one `PretrainConfig`, which checks ranges.
4. `build_encoder(config.encoder, config.encoder_arguments)` makes the encoder and
   `build_method(config.method_name, ...)` the method around it. The loop reads the other fields.
5. The config is saved as config.json and in each checkpoint; `config_from_dict` reads it back.

Only the check of the encoder's arguments imports torch: other wrong settings of Alice are reported
at once. The pages of other methods, which hold their settings, import it.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alice_nnunet.errors import UserError
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.model.pretraining.registry import DEFAULT, settings_class
from alice_nnunet.model.pretraining.settings import AliceSettings, MethodSettings
from alice_nnunet.settings.ranges import (
    require_not_negative,
    require_one_of,
    require_positive,
    require_share,
)
from alice_nnunet.settings.reading import OptionalValue, given_settings

MATCHERS = ("embedding", "body", "same")
DRAWS = ("partners", "random")
QUERIES = ("scans", "regions")
CROP_PLACES = ("inside", "centred")
WARMUP_SHARE = 0.028  # of the iterations: 100 epochs of 1800 volumes in batches of 64, as the paper

# Decided by the command's own options and by the data, not by --set.
IDENTITY = ("dataset", "encoder", "preset", "method_name")

# Encoders whose steps were faster in bf16 on CPUs that have it, in preset tiny and paper. Those of
# swin were slower in preset tiny and not measured in preset paper (docs/results/encoders.md).
FASTER_IN_BF16 = ("nnformer", "vit")

USUAL_THRESHOLD = 0.7  # where the index knows none

# What runs of version 0.1 did, of which their configs say nothing.
RUN_OF_0_1 = {
    "draw": "random",
    "crops": "centred",
    "decay_positions": True,  # their optimizer has these groups
    "lr_pairs": None,  # their lr was that of any batch
}
METHOD_OF_0_1 = {
    "reconstruct": "all",
    "normalise": "token",
    "dv_by": "crop",
    "weight_an": 0.0,
    "target_flips": True,
}
# Its encoders had these arguments for lack of another choice.
ENCODER_OF_0_1: dict[str, dict[str, Any]] = {"vit": {"token": (16, 16, 16)}}

# What users may type for "not set", and what earlier versions wrote into config.json.
NOT_SET = {
    "warmup_iterations": -1,
    "workers": -1,
    "max_return": 0.0,
    "lr_pairs": 0,
    "probe_labels": "",
}


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides what a run computes. Saved as config.json and in each checkpoint.

    Attributes:
        dataset: name of the dataset, DatasetXXX_NAME.
        encoder: vit, swin or nnformer.
        preset: tiny, small or paper.
        encoder_arguments: of the encoder's class: in_channels, crop_size (z, y, x), width ...
        windowed: channels that are a window of HU as 0 to 1, in which the target views stay. None
            in runs of version 0.1.
        method_name: of the method, see alice_nnunet.model.pretraining.registry.
        method: the choices of the method: masking, losses, heads, decoder.
        iterations: number of training steps.
        batch_size: pairs for each GPU and step.
        lr: peak learning rate of AdamW in steps of lr_pairs pairs.
        lr_pairs: pairs in a step that lr is for: with fewer or more, on all GPUs together, the rate
            is in proportion. 0: lr is the rate of any batch, as in runs of version 0.1.
        betas: of AdamW.
        weight_decay: of AdamW.
        decay_positions: whether it also applies to learned positions and mask tokens, as in runs
            of version 0.1.
        warmup_iterations: steps of linear warm-up. Default: 2.8 % of the iterations.
        clip_grad: largest norm of all gradients together.
        ema: momentum of the target at the start of a run; it ends at 1.
        matcher: how the same body part is found in another person: embedding (learned by
            alice-embed), body (relative to the body's box) or same (the same volume twice).
        draw: which pairs are tried: partners (with matcher embedding, scans that are known to show
            the same place) or random (any two scans, as in the paper).
        queries: with draw partners, what is equally likely as query: scans, or regions (slabs of
            the body, 100 mm along its axis).
        crops: where the two crops of a pair lie: inside (both are shifted alike, so that they lie
            in their scans where they can) or centred on the two places that match, as in runs of
            version 0.1.
        min_score: pairs of crops that match with a lower score are rejected. Default: with matcher
            embedding, the score that 2 % of false matches reach; 0.7 with others.
        max_return: mm; with matcher embedding, pairs whose match leads back to a point further
            away are rejected. Default: not checked.
        validation_share: share of the cases that is held out (Sec. A.1).
        precision: fp32, bf16 or auto: bf16 on a GPU that has it and, with vit and nnformer, on a
            CPU that has it. A run records which of both it is, and --c goes on with that.
        accumulate: parts that a batch is computed in, one after the other. The result of a step
            does not depend on it.
        checkpoint_blocks: keep only the input of each block and recompute the rest in the backward
            pass. Saves memory, takes time.
        compile: torch.compile of the ViT's and the decoder's blocks: on, off or auto (on for vit
            on CUDA).
        max_nonfinite: consecutive steps with a non-finite loss or gradient that stop a run.
        workers: processes that load data, for each GPU. Default: none on a CPU, else -np.
        seed: of all random numbers.
        log_every: steps between two log lines.
        validate_every: steps between two validations.
        probe_every: steps between two retrieval probes (do held-out crops find their match?).
            0: never.
        probe_pairs: pairs of crops in a probe.
        probe_labels: folder with images/ and labels/ of at least two labeled people who are not
            trained on. Each probe then also says how well organs are told apart across them: by a
            ridge classifier, and by nearest neighbours. Default: no labels.
        save_every: steps between two checkpoints.
    """

    dataset: str
    encoder: str = "nnformer"
    preset: str = "paper"
    encoder_arguments: dict = field(default_factory=dict)
    windowed: tuple[int, ...] = ()
    method_name: str = DEFAULT
    method: MethodSettings = field(default_factory=AliceSettings)
    iterations: int = 100_000
    batch_size: int = 8
    lr: float = 5e-5  # the paper's, in batches of 64
    lr_pairs: int | None = 64
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    decay_positions: bool = False
    # None is replaced by a number of steps as soon as the config is made.
    warmup_iterations: int = None  # type: ignore[assignment]
    clip_grad: float = 3.0
    ema: float = 0.996
    matcher: str = "embedding"
    draw: str = "partners"
    queries: str = "scans"
    crops: str = "inside"
    min_score: float | None = None
    max_return: float | None = None
    validation_share: float = 0.1
    precision: str = "auto"
    accumulate: int = 1
    checkpoint_blocks: bool = False
    compile: str = "auto"
    max_nonfinite: int = 5
    workers: int | None = None
    seed: int = 0
    log_every: int = 50
    validate_every: int = 1000
    probe_every: int = 1000
    probe_pairs: int = 64
    probe_labels: str | None = None
    save_every: int = 1000

    def __post_init__(self):
        if self.warmup_iterations is None:
            object.__setattr__(self, "warmup_iterations", round(WARMUP_SHARE * self.iterations))

        require_positive(self, "iterations", "batch_size", "lr", "clip_grad", "accumulate")
        require_positive(self, "max_nonfinite", "log_every", "validate_every", "probe_pairs")
        require_positive(self, "save_every")
        require_not_negative(self, "probe_every", "workers", "max_return", "lr_pairs")
        require_share(self, "ema", "validation_share")
        if self.min_score is not None:
            require_share(self, "min_score")

        require_one_of(self, "matcher", MATCHERS)
        require_one_of(self, "draw", DRAWS)
        require_one_of(self, "queries", QUERIES)
        require_one_of(self, "crops", CROP_PLACES)
        require_one_of(self, "precision", ("auto", "fp32", "bf16"))
        require_one_of(self, "compile", ("auto", "on", "off"))

        if not 0 <= self.warmup_iterations < self.iterations:
            raise ValueError(
                "warmup_iterations must be in [0, iterations), "
                f"got {self.warmup_iterations} of {self.iterations}"
            )

        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate must divide batch_size, got {self.accumulate} and {self.batch_size}"
            )

        if self.method.vector_channels and self.matcher != "embedding":
            raise ValueError(
                f"weight_an needs the vectors of matcher embedding, got matcher {self.matcher}: "
                "set weight_an=0"
            )

        compares_all_pairs = self.method.compares_all_pairs
        if self.accumulate > 1 and compares_all_pairs:
            raise ValueError(
                f"accumulate must be 1 with {compares_all_pairs}: every pair of a batch is "
                f"compared with all others, got {self.accumulate}"
            )

    def peak_lr(self, processes: int) -> float:
        """The peak learning rate with this number of processes, in proportion to a step's pairs."""
        if self.lr_pairs is None:
            return self.lr
        return self.lr * self.batch_size * processes / self.lr_pairs

    def as_dict(self) -> dict:
        """Plain values, as they go into JSON and checkpoints."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True)
class Settings:
    """The settings of a run in their groups (see the top of this file), complete but for the data.

    Attributes:
        encoder_name: vit, swin or nnformer.
        preset: tiny, small or paper.
        method_name: of the method.
        encoder: `crop_size` and the arguments of the encoder's class, without `in_channels`.
        method: fields of the method's settings.
        run: fields of `PretrainConfig`.
        given: flat names and values that the user gave, whatever their group.
    """

    encoder_name: str
    preset: str
    method_name: str
    encoder: dict[str, Any]
    method: dict[str, Any]
    run: dict[str, Any]
    given: dict[str, Any]

    @property
    def run_name(self) -> str:
        """How the folders of runs with this encoder and method begin: vit, or mae_vit."""
        if self.method_name == DEFAULT:
            return self.encoder_name
        return f"{self.method_name}_{self.encoder_name}"


def known_settings(encoder: str, preset: str, method: str = DEFAULT) -> dict[str, dict[str, Any]]:
    """For each group the names that --set accepts, with an example of the kind of value."""
    chosen = PRESETS[encoder][preset]

    fields = {f.name: f.default for f in dataclasses.fields(PretrainConfig)}
    for name in (*IDENTITY, "encoder_arguments", "windowed", "method"):
        del fields[name]

    return {
        "encoder": {**chosen.encoder, "crop_size": chosen.crops.size},
        "method": dataclasses.asdict(settings_class(method)()),
        "run": {
            **fields,
            **{name: OptionalValue(value) for name, value in NOT_SET.items()},
            "min_score": OptionalValue(USUAL_THRESHOLD),
        },
    }


def read_settings(
    encoder: str,
    preset: str,
    assignments: Sequence[str] = (),
    file: Path | None = None,
    method_name: str = DEFAULT,
) -> Settings:
    """Read the settings of a run: the preset's, then those of a JSON file, then `name=value`.

    Args:
        encoder: vit, swin or nnformer.
        preset: tiny, small or paper.
        assignments: words `name=value` of the command line.
        file: JSON file of settings, such as the config.json of another run.
        method_name: of the method.

    Raises:
        UserError: a name does not exist, a value is of the wrong kind or out of range, the file
            cannot be read, or the method cannot train this encoder.
    """
    chosen = PRESETS[encoder][preset]
    settings_kind = settings_class(method_name)
    known = known_settings(encoder, preset, method_name)
    all_known = {**known["encoder"], **known["method"], **known["run"]}

    if file is not None:
        check_method_of(file, method_name)
    given = given_settings(
        file, list(assignments), all_known, (*IDENTITY, "in_channels", "windowed")
    )
    given = none_where_not_set(given)
    if file is not None and method_name == DEFAULT:
        given = {**left_out_by_0_1(file), **given}

    def given_of(group: str) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name in known[group]}

    run = {**chosen.run, **settings_kind.run, **given_of("run")}
    of_preset = {name: v for name, v in chosen.method.items() if name in known["method"]}
    method = settings_kind.completed({**of_preset, **given_of("method")}, run)

    arguments = {**chosen.encoder, "crop_size": chosen.crops.size, **given_of("encoder")}
    refusal = settings_kind.refusal(encoder, arguments)
    if refusal:
        raise UserError(f"-method {method_name} cannot train encoder {encoder}: {refusal}")

    settings = Settings(
        encoder_name=encoder,
        preset=preset,
        method_name=method_name,
        encoder=arguments,
        method=method,
        run=run,
        given=given,
    )
    combine("", settings, {}, ())  # checks the ranges, before anything that takes time
    return settings


def left_out_by_0_1(file: Path) -> dict[str, Any]:
    """What the config.json of a run of version 0.1 does not say of it; nothing for other files."""
    content = json.loads(file.read_text())
    if "encoder_arguments" not in content:
        return {}  # settings that a user wrote

    run = {name: value for name, value in RUN_OF_0_1.items() if name not in content}
    method = {n: value for n, value in METHOD_OF_0_1.items() if n not in content["method"]}
    return run | method


def check_method_of(file: Path, method_name: str) -> None:
    """Raise UserError if file is the config.json of a run of another method."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return  # given_settings says what is wrong

    of_run = content.get("method_name", method_name) if isinstance(content, dict) else method_name
    if of_run != method_name:
        raise UserError(
            f"{file} has the settings of a run of method {of_run}, this one is of {method_name}: "
            f"add -method {of_run}"
        )


def none_where_not_set(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, with None where a number stands for "not set" (see NOT_SET)."""
    return {
        name: None if name in NOT_SET and value == NOT_SET[name] else value
        for name, value in values.items()
    }


def make_config(
    dataset: str, settings: Settings, in_channels: int = 1, windowed: tuple[int, ...] = ()
) -> PretrainConfig:
    """The config of a run on a dataset.

    Args:
        dataset: DatasetXXX_NAME.
        settings: of `read_settings`.
        in_channels: number of channels of the dataset's images.
        windowed: those that are a window of HU as 0 to 1.

    Raises:
        UserError: a value is out of range.
    """
    encoder_arguments = {"in_channels": in_channels, **settings.encoder}

    grid = check_encoder(settings.encoder_name, encoder_arguments)
    config = combine(dataset, settings, encoder_arguments, windowed)
    refusal = config.method.grid_refusal(grid)
    if refusal:
        raise UserError(refusal)
    return config


def combine(
    dataset: str, settings: Settings, encoder_arguments: dict, windowed: tuple[int, ...]
) -> PretrainConfig:
    """The three groups and what the data decides, as one config.

    Raises:
        UserError: a value is out of range.
    """
    try:
        return PretrainConfig(
            dataset=dataset,
            encoder=settings.encoder_name,
            preset=settings.preset,
            encoder_arguments=encoder_arguments,
            windowed=windowed,
            method_name=settings.method_name,
            method=settings_class(settings.method_name)(**settings.method),
            **settings.run,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def check_encoder(name: str, arguments: dict[str, Any]) -> tuple[int, int, int]:
    """Build an encoder without memory, before any file is touched.

    Returns:
        Units of a crop, along (z, y, x).

    Raises:
        UserError: it cannot be built.
    """
    import torch

    from alice_nnunet.model.encoders.registry import build_encoder

    try:
        with torch.device("meta"):  # no memory, no random numbers
            return build_encoder(name, arguments).grid
    except ValueError as error:
        raise UserError(str(error)) from None


def config_from_dict(saved: dict) -> PretrainConfig:
    """The config that a checkpoint or a config.json holds, also one of an earlier version.

    Raises:
        ValueError: a value is out of range.
    """
    arguments = {name: as_tuples(value) for name, value in saved["encoder_arguments"].items()}
    method = {name: as_tuples(value) for name, value in saved["method"].items()}
    method_name = saved.get("method_name", DEFAULT)
    of_earlier = METHOD_OF_0_1 if method_name == DEFAULT else {}
    return PretrainConfig(
        **{
            **RUN_OF_0_1,
            **none_where_not_set(saved),
            "method": settings_class(method_name)(**{**of_earlier, **method}),
            "encoder_arguments": {**ENCODER_OF_0_1.get(saved["encoder"], {}), **arguments},
            "windowed": tuple(saved.get("windowed", ())),
            "betas": tuple(saved["betas"]),
        }
    )


def rate(config: PretrainConfig, processes: int) -> str:
    """The peak learning rate in words, and what it follows from."""
    peak = f"lr {config.peak_lr(processes):g}"
    pairs = config.batch_size * processes
    if config.lr_pairs in (None, pairs):
        return peak
    return f"{peak} for {pairs} pairs in a step ({config.lr:g} for {config.lr_pairs})"


def as_tuples(value: Any) -> Any:
    """Lists, also those inside lists, as tuples: JSON knows only lists."""
    if isinstance(value, list):
        return tuple(as_tuples(item) for item in value)
    return value
