"""A training of the anatomical embedding as run_steps() drives it."""

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from alice_nnunet.matcher.training.crops import BodyCrops
from alice_nnunet.pictures import patches_figure
from alice_nnunet.pretrain.embedding.config import EmbedConfig
from alice_nnunet.pretrain.embedding.state import State, save_state
from alice_nnunet.pretrain.embedding.step import (
    PatchPair,
    StepResult,
    compare_patches,
    train_step,
)
from alice_nnunet.pretrain.runtime.device import TRAINING, VALIDATION, generator_at
from alice_nnunet.pretrain.runtime.loading import batches
from alice_nnunet.pretrain.runtime.log import RunLog, time_left
from alice_nnunet.pretrain.runtime.steps import Schedule, run_steps

VALIDATION_BATCHES = 2

PANELS = {  # of progress.png
    "losses": ("fine", "coarse", "validation fine", "validation coarse"),
    "share of points found again": ("found", "validation found"),
    "seconds per step": ("step time", "data time"),
}


@dataclass
class EmbedRun:
    """A training and everything it needs to go on. It is the work of one process.

    Attributes:
        config: Its settings.
        state: Weights, optimizer, steps done.
        volumes: Folder of the preprocessed cases.
        folder: Folder of the results.
        data: Description of the data, for the checkpoint.
        training: Cases to learn from.
        held_out: Cases to validate on.
        workers: Processes that load data, 0 for this one.
        validation: Batches of held-out volumes; train() reads them.
    """

    config: EmbedConfig
    state: State
    volumes: Path
    folder: Path
    data: dict
    training: list[str]
    held_out: list[str]
    workers: int
    validation: list[dict] = field(default_factory=list)

    how_to_resume = "Run the same command again to resume"

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            steps=self.config.iterations,
            log_every=self.config.log_every,
            validate_every=self.config.validate_every,
            save_every=self.config.save_every,
        )

    def crops(self, cases: list[str], stream: int, length: int) -> BodyCrops:
        """A stream of crops: TRAINING or VALIDATION."""
        config = self.config
        return BodyCrops(
            self.volumes,
            cases,
            config.crop_size,
            config.voxel,
            config.points,
            (config.seed, stream),
            length,
        )

    def training_batches(self) -> Generator[dict, None, None]:
        """The batches from the present step to the last."""
        size = self.config.batch_size
        steps = self.config.iterations
        shares = [range(step * size, (step + 1) * size) for step in range(self.state.step, steps)]

        crops = self.crops(self.training, TRAINING, steps * size)
        on_gpu = self.state.device.type == "cuda"
        return batches(crops, shares, self.workers, pin_memory=on_gpu)

    def read_validation(self) -> None:
        """Read VALIDATION_BATCHES of held-out volumes, where there are such."""
        if not self.held_out:
            return

        size = self.config.batch_size
        shares = [range(n * size, (n + 1) * size) for n in range(VALIDATION_BATCHES)]
        crops = self.crops(self.held_out, VALIDATION, VALIDATION_BATCHES * size)
        self.validation = list(batches(crops, shares))

    def take_step(self, batch: dict) -> StepResult:
        return train_step(self.state, batch, self.config)

    def cases_of(self, batch: dict) -> dict[str, list]:
        return {"cases": list(batch["case"])}

    def agree_to_stop(self, number: int) -> int:
        """The signal itself: where several processes pretrain, only one runs this, for all."""
        return number

    def report(self, log: RunLog, means: dict[str, float]) -> None:
        """Log one line, and TensorBoard, for the steps since the last."""
        state = self.state
        means["lr"] = state.optimizer.param_groups[0]["lr"]
        log.scalars(state.step, means, state.history)

        left = time_left(means["step time"] * (self.config.iterations - state.step))
        log.line(
            f"step {state.step}/{self.config.iterations} | fine {means['fine']:.4f} "
            f"coarse {means['coarse']:.4f} | "
            f"points found again {means['found']:.0%} | "
            f"lr {means['lr']:.2e} | grad {means['gradient norm']:.2f} | "
            f"data {means['data time']:.3f} s, step {means['step time']:.3f} s | left {left}"
        )

    def probe(self, log: RunLog) -> None:
        """Nothing: what validation finds again is the measure."""

    @torch.no_grad()
    def validate(self, log: RunLog) -> None:
        """Log losses on held-out volumes, with the same patches every time, and a picture."""
        if not self.validation:
            return

        state = self.state
        state.network.eval()
        patches = []
        for index, batch in enumerate(self.validation):
            generator = generator_at(self.config.seed, VALIDATION, index, state.device)
            patches.append(compare_patches(state.network, batch, generator, self.config))

        def mean(values: list[torch.Tensor]) -> float:
            return torch.stack(values).mean().item()

        means = {
            "validation fine": mean([pair.losses["fine"] for pair in patches]),
            "validation coarse": mean([pair.losses["coarse"] for pair in patches]),
            "validation found": mean([pair.found for pair in patches]),
        }
        log.scalars(state.step, means, state.history)
        log.line(
            f"validation | fine {means['validation fine']:.4f} "
            f"coarse {means['validation coarse']:.4f} | "
            f"points found again {means['validation found']:.0%} | "
            f"{len(self.held_out)} held-out volumes"
        )
        self.draw_first(log, patches[0])

    def draw_first(self, log: RunLog, patches: PatchPair) -> None:
        """Draw the two patches of the first volume, with the points that both show."""
        shown = patches.inside[0]
        figure = patches_figure(
            patches.first.image[0, 0].cpu().numpy(),
            patches.second.image[0, 0].cpu().numpy(),
            patches.places[0][0, shown].cpu().numpy(),
            patches.places[1][0, shown].cpu().numpy(),
            self.validation[0]["case"][0],
        )
        log.picture(self.state.step, "patches", figure)

    def save(self, path: Path) -> None:
        save_state(path, self.state, self.config, self.data)


def train(run: EmbedRun) -> int:
    """Train from the present step to the last.

    Returns:
        0, or the number of the signal that stopped the training after a step, which is saved.

    Raises:
        NonFiniteLoss: Too many steps in a row were skipped.
        UserError: The data cannot be read, or the checkpoint cannot be written.
    """
    log = RunLog(run.folder, run.state.step, PANELS, run.config.as_dict())
    run.read_validation()
    stopped_by = run_steps(run, log)
    log.close()
    return stopped_by
