"""The pretraining loop: a step that is a function of (state, batch, step), and the plumbing around it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from alice_nnunet.data.pairs import AlignedPairs, NoMatch
from alice_nnunet.data.views import make_views
from alice_nnunet.matcher.body import match_by_body
from alice_nnunet.matcher.learned import EmbeddingMatcher
from alice_nnunet.matcher.match import Matcher, match_same
from alice_nnunet.model.alice import Alice, Output
from alice_nnunet.pictures import pair_figure, reconstruction_figure
from alice_nnunet.pretrain.config import PretrainConfig
from alice_nnunet.pretrain.log import RunLog, time_left
from alice_nnunet.pretrain.pretrain_plans import ANATOMY
from alice_nnunet.pretrain.state import State, save_state
from alice_nnunet.schedules import ema_momentum, warmup_cosine

Spacing = tuple[float, float, float]
COLLAPSED = 0.1  # spread under which a run warns


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is not a finite number."""


def generator_at(seed: int, stream: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of one step: the same numbers whether or not the run was interrupted. stream: training 0, validation 1."""
    words = np.random.SeedSequence((seed, stream, step)).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 where asked for, or where the device has it and precision is auto (a CPU emulates it slowly: fp32 there)."""
    auto = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and auto))


def forward(model: Alice, batch: dict, generator: torch.Generator, config: PretrainConfig, spacing: Spacing) -> Output:
    """Views of both crops, then the three losses."""
    device = generator.device
    query, key = (make_views(batch[name].to(device, non_blocking=True), model.unit, spacing, config.method, generator)
                  for name in ("query", "key"))
    with autocast(device, config.precision):
        return model(query, key)


def train_step(state: State, batch: dict, config: PretrainConfig, spacing: Spacing) -> dict[str, Tensor]:
    """One optimiser step on a batch of aligned pairs. Returns the numbers to log, still on the device."""
    model, optimizer, step = state.model.train(), state.optimizer, state.step
    for group in optimizer.param_groups:
        group["lr"] = warmup_cosine(step, config.iterations, config.warmup_iterations, config.lr)
    output = forward(model, batch, generator_at(config.seed, 0, step, next(model.parameters()).device), config, spacing)
    optimizer.zero_grad(set_to_none=True)
    output.loss.backward()
    norm = clip_grad_norm_(model.parameters(), config.clip_grad)
    if not torch.isfinite(norm):
        cases = ", ".join(f"{q} with {k}" for q, k in zip(batch["query_case"], batch["key_case"]))
        raise NonFiniteLoss(f"step {step}: loss {output.loss.item()}, gradient norm {norm.item()}; the pairs were {cases}")
    optimizer.step()
    model.update_target(ema_momentum(step, config.iterations, config.ema), output.target_means)  # EMA, Sec. 3.1
    state.step += 1
    return {"loss": output.loss.detach(), **{k: v.detach() for k, v in output.losses.items()},
            **{f"spread {k}": v for k, v in output.spreads.items()}, "gradient norm": norm}


@torch.no_grad()
def validate(state: State, batches: list[dict], config: PretrainConfig, spacing: Spacing) -> tuple[dict[str, float], Output]:
    """Mean losses over the held-out pairs, with the same views every time, and the output for the first batch."""
    model, device = state.model.eval(), next(state.model.parameters()).device
    outputs = [forward(model, batch, generator_at(config.seed, 1, index, device), config, spacing)
               for index, batch in enumerate(batches)]
    means = {f"validation {name}": torch.stack([o.losses[name] for o in outputs]).mean().item() for name in outputs[0].losses}
    return means, outputs[0]


@dataclass
class Run:
    """A pretraining and everything it needs to go on. volumes: preprocessed cases; folder: results."""

    config: PretrainConfig
    state: State
    volumes: Path
    folder: Path
    spacing: Spacing
    data: dict             # description of the data, for the checkpoint
    adaptation_plan: dict  # in nnssl's schema, for the checkpoint
    training: list[str]
    held_out: list[str]
    workers: int

    def matcher(self) -> Matcher:
        """The one that the config names."""
        if self.config.matcher == "embedding":
            return EmbeddingMatcher(self.volumes.parent / ANATOMY, self.config.max_return or None)
        return {"body": match_by_body, "same": match_same}[self.config.matcher]

    def pairs(self, queries: list[str], keys: list[str], stream: int, length: int, min_score: float) -> AlignedPairs:
        return AlignedPairs(self.volumes, queries, keys, self.config.encoder_arguments["crop_size"], self.matcher(),
                            min_score, (self.config.seed, stream), length, same_volume=self.config.matcher == "same")

    def training_batches(self) -> Iterator[dict]:
        """The batches from the present step to the last."""
        size, total = self.config.batch_size, self.config.iterations * self.config.batch_size
        pairs = self.pairs(self.training, self.training, 0, total, self.config.min_score)
        return iter(DataLoader(pairs, size, sampler=range(self.state.step * size, total), num_workers=self.workers,
                               pin_memory=next(self.state.model.parameters()).is_cuda))

    def validation_batches(self, log: RunLog) -> list[dict]:
        """Whole batches of pairs of a held-out person with another one, at least 4 pairs and 2 for each held-out case.

        None without held-out cases. Where the held-out match nobody well enough their pairs are taken as they are, and log says so.
        """
        if not self.held_out:
            return []
        keys = self.held_out if len(self.held_out) > 1 else self.held_out + self.training
        size, wanted = self.config.batch_size, max(4, 2 * len(self.held_out))
        batches = lambda score: list(DataLoader(self.pairs(self.held_out, keys, 1, -(-wanted // size) * size, score), size))
        try:
            return batches(self.config.min_score)
        except NoMatch:
            log.line(f"WARNING: the held-out volumes ({', '.join(self.held_out)}) match no other with a score of {self.config.min_score}: "
                     "validation goes by pairs of any score, so its l_dv means little; training pairs are not concerned")
            return batches(0.0)

    def save(self, name: str) -> None:
        save_state(self.folder / name, self.state, self.config, self.data, self.adaptation_plan)


def train(run: Run) -> None:
    """From the present step to the last: log, validate, save. checkpoint_final.pth is the end."""
    config, state, log = run.config, run.state, RunLog(run.folder, run.state.step)
    held_out, batches, recent = run.validation_batches(log), run.training_batches(), []
    while state.step < config.iterations:
        start = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        numbers = train_step(state, batch, config, run.spacing)
        recent.append({**numbers, "rejected": batch["rejected"].float().mean(), "data time": loaded - start,
                       "step time": time.perf_counter() - start})
        if state.step % config.log_every == 0 or state.step == config.iterations:
            report(run, log, recent)
            recent = []
        if held_out and (state.step % config.validate_every == 0 or state.step == config.iterations):
            show_validation(run, log, held_out)
        if state.step % config.save_every == 0 and state.step < config.iterations:
            run.save("checkpoint_latest.pth")
    run.save("checkpoint_final.pth")
    log.line(f"finished after {state.step} steps: {run.folder / 'checkpoint_final.pth'}")
    log.close()


def report(run: Run, log: RunLog, recent: list[dict]) -> None:
    """One log line, TensorBoard and progress.png for the steps since the last; a loud warning on collapse."""
    state, config = run.state, run.config
    means = {name: float(np.mean([float(numbers[name]) for numbers in recent])) for name in recent[0]}
    rejected = means.pop("rejected")
    means["rejection rate"] = rejected / (1 + rejected)
    means["lr"] = state.optimizer.param_groups[0]["lr"]
    log.scalars(state.step, means, state.history)
    left = time_left(means["step time"] * (config.iterations - state.step))
    log.line(f"step {state.step}/{config.iterations} | loss {means['loss']:.4f} l_r {means['l_r']:.4f} l_dv {means['l_dv']:.4f} "
             f"l_st {means['l_st']:.4f} | spread cls {means['spread cls']:.3f} S {means['spread S']:.3f} T {means['spread T']:.3f} | "
             f"rejected {means['rejection rate']:.0%} | lr {means['lr']:.2e} | grad {means['gradient norm']:.2f} | "
             f"data {means['data time']:.3f} s, step {means['step time']:.3f} s | left {left}")
    low = [name for name in ("cls", "S", "T") if means[f"spread {name}"] < COLLAPSED]
    if low:
        log.line(f"WARNING: COLLAPSE? the spread of {' and '.join(low)} is under {COLLAPSED}: these features are nearly the same "
                 f"for every place in the body and their loss teaches nothing")
    log.progress(state.history)


def show_validation(run: Run, log: RunLog, held_out: list[dict]) -> None:
    """Losses on held-out cases, and the pictures of their first pair."""
    state, batch = run.state, held_out[0]
    means, output = validate(state, held_out, run.config, run.spacing)
    log.scalars(state.step, means, state.history)
    log.line("validation | " + " ".join(f"{name.split()[1]} {value:.4f}" for name, value in means.items())
             + f" | {len(run.held_out)} held-out cases")
    titles = (f"query {batch['query_case'][0]}", f"key {batch['key_case'][0]}")
    log.picture(state.step, "pair", pair_figure(batch["query"][0].numpy(), batch["key"][0].numpy(), run.spacing, titles))
    log.picture(state.step, "reconstruction", reconstruction_figure(
        output.crop[0].cpu(), output.predicted[0].cpu(), output.masked[0].cpu(), state.model.unit, run.spacing))
