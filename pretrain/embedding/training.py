"""Training of the anatomical embedding: a step that is a function of (state, batch, step), and the plumbing around it."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from alice_nnunet.checkpoint import load_checkpoint, save_checkpoint
from alice_nnunet.matcher.contrast import anatomy_losses
from alice_nnunet.matcher.crops import BodyCrops
from alice_nnunet.matcher.context import ContextNet, contexts
from alice_nnunet.matcher.network import AnatomyNet
from alice_nnunet.matcher.patches import Patches, draw_patches, interpolated, vectors_at
from alice_nnunet.matcher.weights import build_network
from alice_nnunet.names import FINAL, LATEST
from alice_nnunet.pictures import patches_figure
from alice_nnunet.pretrain.embedding.config import EmbedConfig
from alice_nnunet.pretrain.runtime.loading import batches
from alice_nnunet.pretrain.runtime.log import RunLog, time_left
from alice_nnunet.pretrain.training.step import NonFiniteLoss, autocast, generator_at
from alice_nnunet.schedules import warmup_cosine

PANELS = {
    "losses": ("fine", "coarse", "validation fine", "validation coarse"),
    "share of points found again": ("found", "validation found"),
    "seconds per step": ("step time", "data time"),
}


@dataclass
class State:
    """Network, optimizer, the number of steps done, and what was logged. Every random number comes from (seed, step)."""

    network: AnatomyNet | ContextNet
    optimizer: torch.optim.AdamW
    step: int = 0
    history: dict[str, list] = field(default_factory=dict)


def build_state(config: EmbedConfig, device: torch.device) -> State:
    """A training before its first step. Weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(config.features, config.network).to(device)
    return State(
        network,
        torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay),
    )


def save_state(path: Path, state: State, config: EmbedConfig, data: dict) -> None:
    save_checkpoint(
        path,
        {
            "network_weights": state.network.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "step": state.step,
            "random_states": {"seed": config.seed, "step": state.step},
            "history": state.history,
            "config": config.as_dict(),
            "data": data,
        },
    )


def load_state(path: Path, config: EmbedConfig, device: torch.device) -> State:
    """The training saved in path. Raises UserError if the file cannot be read."""
    saved, state = load_checkpoint(path, device), build_state(config, device)
    state.network.load_state_dict(saved["network_weights"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.step, state.history = saved["step"], saved["history"]
    return state


@dataclass
class Step:
    """What a step computed. first, second: the patches; places: of the points in each, (B, K, 3); inside: (B, K), shown in both.
    losses: fine and coarse. found: share of points whose most similar one in the other patch is within the fine ignore radius."""

    first: Patches
    second: Patches
    places: tuple[Tensor, Tensor]
    inside: Tensor
    losses: dict[str, Tensor]
    found: Tensor


def forward(
    network: AnatomyNet, batch: dict, generator: torch.Generator, config: EmbedConfig
) -> Step:
    """Two patches of each crop, their vectors at the same points, the losses."""
    device = generator.device
    crops, points = (batch[name].to(device, non_blocking=True) for name in ("crop", "points"))
    first, second = (
        draw_patches(crops, config.patch_size, 3 * (config.voxel,), generator) for _ in range(2)
    )
    places = first.locate(points), second.locate(points)
    inside = (places[0].abs().amax(2) < 1) & (places[1].abs().amax(2) < 1)
    with autocast(device, config.precision):
        maps = network(torch.cat([first.image, second.image]))
    fine, coarse = (m.float().chunk(2) for m in maps)
    vectors = [(vectors_at(f, at), vectors_at(c, at)) for f, c, at in zip(fine, coarse, places)]
    in_volume = points + batch["middle"].to(device)[:, None]
    losses = anatomy_losses(
        *vectors,
        inside,
        in_volume,
        batch["number"].to(device),
        (config.ignore_fine, config.ignore_coarse),
        config.hardest,
        config.temperature,
    )
    return Step(
        first,
        second,
        places,
        inside,
        losses,
        share_found(*vectors, inside, points, config.ignore_fine),
    )


@torch.no_grad()
def share_found(
    first: tuple, second: tuple, inside: Tensor, points: Tensor, radius: float
) -> Tensor:
    """Share of points whose most similar point in the other patch of the same crop is less than radius mm away."""
    alike = sum(a @ b.mT for a, b in zip(first, second)).masked_fill(
        ~inside[:, None], -torch.inf
    )  # (B, K, K)
    best = points.gather(1, alike.argmax(2, keepdim=True).expand(-1, -1, 3))
    return ((best - points).norm(dim=2) < radius)[inside].float().mean()


def train_step(state: State, batch: dict, config: EmbedConfig) -> dict[str, Tensor]:
    """One optimiser step. Returns the numbers to log, still on the device."""
    network, optimizer, step = state.network.train(), state.optimizer, state.step
    for group in optimizer.param_groups:
        group["lr"] = warmup_cosine(step, config.iterations, config.warmup_iterations, config.lr)
    result = forward(
        network,
        batch,
        generator_at(config.seed, 0, step, next(network.parameters()).device),
        config,
    )
    if isinstance(network, ContextNet):
        norm = observe(network, result)
    else:
        optimizer.zero_grad(set_to_none=True)
        (result.losses["fine"] + result.losses["coarse"]).backward()
        norm = clip_grad_norm_(network.parameters(), config.clip_grad)
    if not torch.isfinite(norm):
        raise NonFiniteLoss(
            f"step {step}: losses {[v.item() for v in result.losses.values()]}, gradient norm {norm.item()}; "
            f"the cases were {', '.join(batch['case'])}"
        )
    optimizer.step()  # of a ContextNet nothing has a gradient
    state.step += 1
    return {
        **{name: loss.detach() for name, loss in result.losses.items()},
        "found": result.found,
        "gradient norm": norm,
    }


def observe(network: ContextNet, step: Step) -> Tensor:
    """Learn in closed form from the patches of a step. Returns by how much the weights changed."""
    before = torch.cat([p.flatten() for p in network.parameters()])
    network.observe(
        *(
            interpolated(contexts(patches.image), places)[step.inside]
            for patches, places in zip((step.first, step.second), step.places)
        )
    )
    return (torch.cat([p.flatten() for p in network.parameters()]) - before).norm()


@dataclass
class EmbedRun:
    """A training and everything it needs to go on. volumes: preprocessed cases; folder: results."""

    config: EmbedConfig
    state: State
    volumes: Path
    folder: Path
    data: dict
    training: list[str]
    held_out: list[str]
    workers: int

    def crops(self, cases: list[str], stream: int, length: int) -> BodyCrops:
        c = self.config
        return BodyCrops(
            self.volumes, cases, c.crop_size, c.voxel, c.points, (c.seed, stream), length
        )

    def training_batches(self) -> Iterator[dict]:
        """The batches from the present step to the last."""
        size, steps = self.config.batch_size, self.config.iterations
        shares = [range(step * size, (step + 1) * size) for step in range(self.state.step, steps)]
        return batches(
            self.crops(self.training, 0, steps * size),
            shares,
            self.workers,
            next(self.state.network.parameters()).is_cuda,
        )

    def validation_batches(self) -> list[dict]:
        """Two batches of crops of held-out volumes; none without such volumes."""
        size = self.config.batch_size
        return (
            list(
                batches(
                    self.crops(self.held_out, 1, 2 * size), [range(size), range(size, 2 * size)]
                )
            )
            if self.held_out
            else []
        )


def train(run: EmbedRun) -> None:
    """From the present step to the last: log, validate, save. checkpoint_final.pth is the end."""
    log, held_out = RunLog(run.folder, run.state.step, PANELS), run.validation_batches()
    with closing(run.training_batches()) as training:
        follow(run, log, training, held_out)
    save_state(run.folder / FINAL, run.state, run.config, run.data)
    log.close()


def follow(run: EmbedRun, log: RunLog, training: Iterator[dict], held_out: list[dict]) -> None:
    """The steps, and after each what it is time for."""
    config, state, recent = run.config, run.state, []
    while state.step < config.iterations:
        start = time.perf_counter()
        batch = next(training)
        loaded = time.perf_counter()
        numbers = train_step(state, batch, config)
        recent.append(
            {**numbers, "data time": loaded - start, "step time": time.perf_counter() - start}
        )
        last = state.step == config.iterations
        if state.step % config.log_every == 0 or last:
            report(run, log, recent)
            recent = []
        if held_out and (state.step % config.validate_every == 0 or last):
            validate(run, log, held_out)
        if state.step % config.save_every == 0 and not last:
            save_state(run.folder / LATEST, state, config, run.data)


def report(run: EmbedRun, log: RunLog, recent: list[dict]) -> None:
    """One log line, TensorBoard and progress.png for the steps since the last."""
    state, config = run.state, run.config
    means = {
        name: float(np.mean([float(numbers[name]) for numbers in recent])) for name in recent[0]
    }
    means["lr"] = state.optimizer.param_groups[0]["lr"]
    log.scalars(state.step, means, state.history)
    log.line(
        f"step {state.step}/{config.iterations} | fine {means['fine']:.4f} coarse {means['coarse']:.4f} | found {means['found']:.0%} | "
        f"lr {means['lr']:.2e} | grad {means['gradient norm']:.2f} | data {means['data time']:.3f} s, "
        f"step {means['step time']:.3f} s | left {time_left(means['step time'] * (config.iterations - state.step))}"
    )
    log.progress(state.history)


@torch.no_grad()
def validate(run: EmbedRun, log: RunLog, batches: list[dict]) -> None:
    """Losses on held-out volumes, with the same patches every time, and a picture of the first two patches."""
    state, config = run.state, run.config
    network, device = state.network.eval(), next(state.network.parameters()).device
    steps = [
        forward(network, batch, generator_at(config.seed, 1, i, device), config)
        for i, batch in enumerate(batches)
    ]
    mean = lambda values: torch.stack(values).mean().item()
    means = {
        **{f"validation {n}": mean([s.losses[n] for s in steps]) for n in ("fine", "coarse")},
        "validation found": mean([s.found for s in steps]),
    }
    log.scalars(state.step, means, state.history)
    log.line(
        f"validation | fine {means['validation fine']:.4f} coarse {means['validation coarse']:.4f} | "
        f"found {means['validation found']:.0%} | {len(run.held_out)} held-out volumes"
    )
    first = steps[0]
    log.picture(
        state.step,
        "patches",
        patches_figure(
            first.first.image[0, 0].cpu().numpy(),
            first.second.image[0, 0].cpu().numpy(),
            *(place[0, first.inside[0]].cpu().numpy() for place in first.places),
            batches[0]["case"][0],
        ),
    )
