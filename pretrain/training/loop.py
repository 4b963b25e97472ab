"""The pretraining loop: the plumbing around a step."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from alice_nnunet.data.pairs import AlignedPairs, NoMatch
from alice_nnunet.matcher.baselines import match_by_body, match_same
from alice_nnunet.matcher.learned import EmbeddingMatcher
from alice_nnunet.data.match import Matcher
from alice_nnunet.pictures import pair_figure, reconstruction_figure
from alice_nnunet.pretrain.training.config import PretrainConfig
from alice_nnunet.pretrain.runtime.distributed import gather_lists, largest, own_share
from alice_nnunet.pretrain.runtime.loading import batches
from alice_nnunet.pretrain.runtime.log import RunLog, peak_memory, time_left
from alice_nnunet.names import ANATOMY, FINAL, LATEST
from alice_nnunet.pretrain.training.probe import matched_crops_found
from alice_nnunet.pretrain.training.state import State, save_state
from alice_nnunet.pretrain.training.step import (
    PROBE,
    TRAINING,
    VALIDATION,
    NonFiniteLoss,
    Spacing,
    train_step,
    validate,
)
from alice_nnunet.pretrain.runtime.stop import StopRequest
from alice_nnunet.ranks import rank, world
from alice_nnunet.schedules import ema_momentum

COLLAPSED = 0.1  # spread under which a run warns
VALIDATION_PAIRS = 32  # at most, but for whole batches: they stay in memory


def make_matcher(config: PretrainConfig, volumes: Path) -> Matcher:
    """The one that the config names."""
    if config.matcher == "embedding":
        return EmbeddingMatcher(volumes.parent / ANATOMY, config.max_return)
    return {"body": match_by_body, "same": match_same}[config.matcher]


def make_pairs(
    config: PretrainConfig,
    volumes: Path,
    queries: list[str],
    keys: list[str],
    stream: int,
    length: int,
    min_score: float,
) -> AlignedPairs:
    """A stream of pairs: TRAINING or VALIDATION."""
    return AlignedPairs(
        volumes,
        queries,
        keys,
        config.encoder_arguments["crop_size"],
        make_matcher(config, volumes),
        min_score,
        (config.seed, stream),
        length,
        same_volume=config.matcher == "same",
    )


@dataclass
class Run:
    """A pretraining and everything it needs to go on. volumes: preprocessed cases; folder: results."""

    config: PretrainConfig
    state: State
    volumes: Path
    folder: Path
    spacing: Spacing
    data: dict  # description of the data, for the checkpoint
    adaptation_plan: dict  # in nnssl's schema, for the checkpoint
    training: list[str]
    held_out: list[str]
    workers: int

    def training_batches(self) -> Iterator[dict]:
        """This process's batches from the present step to the last. They depend on the pairs in a step of all processes alone."""
        size, steps = self.config.batch_size, self.config.iterations
        pairs = make_pairs(
            self.config,
            self.volumes,
            self.training,
            self.training,
            TRAINING,
            steps * size * world(),
            self.config.min_score,
        )
        return batches(
            pairs,
            [own_share(step, size) for step in range(self.state.step, steps)],
            self.workers,
            pin_memory=next(self.state.model.parameters()).is_cuda,
        )

    def validation_batches(self, log: RunLog) -> list[dict]:
        """2 pairs for each held-out case but at least 4 and at most some 32; none without held-out cases."""
        return list(
            self.held_out_batches(
                VALIDATION, min(max(4, 2 * len(self.held_out)), VALIDATION_PAIRS), log
            )
        )

    def held_out_batches(self, stream: int, wanted: int, log: RunLog) -> Iterator[dict]:
        """Whole batches of pairs of a held-out person with another one, as many pairs as wanted or a few more, the same every time.

        Where the held-out match nobody well enough their pairs are taken as they are, and log says so.
        """
        if not self.held_out:
            return
        keys = self.held_out if len(self.held_out) > 1 else self.held_out + self.training
        size = self.config.batch_size
        shares = [range(first, first + size) for first in range(0, wanted, size)]
        pairs = make_pairs(
            self.config,
            self.volumes,
            self.held_out,
            keys,
            stream,
            len(shares) * size,
            self.config.min_score,
        )
        try:
            for index in range(len(pairs)):
                pairs.draw(index)
        except NoMatch:
            log.line(
                f"WARNING: the held-out volumes ({', '.join(self.held_out)}) match no other with a score of {self.config.min_score}: "
                "validation and probe go by pairs of any score, so l_dv and retrieval mean little; training pairs are not concerned"
            )
            pairs = make_pairs(
                self.config, self.volumes, self.held_out, keys, stream, len(shares) * size, 0.0
            )
        yield from batches(pairs, shares)

    def save(self, name: str) -> None:
        save_state(self.folder / name, self.state, self.config, self.data, self.adaptation_plan)


def train(run: Run) -> int:
    """From the present step to the last: log, validate, save; checkpoint_final.pth is the end.

    Returns 0, or the signal that stopped it after a step, with that step saved. Raises NonFiniteLoss after
    config.max_nonfinite steps in a row without a finite loss and gradient. Process 0 of several logs, validates and saves.
    """
    config, state, recent = run.config, run.state, []
    log = RunLog(run.folder, state.step) if rank() == 0 else None
    held_out = run.validation_batches(log) if log else []
    device = next(state.model.parameters()).device
    if log and not state.step:
        show_probe(run, log)  # of random weights, to compare with
    with StopRequest() as stop, closing(run.training_batches()) as training:
        while state.step < config.iterations:
            start = time.perf_counter()
            batch = next(training)
            loaded = time.perf_counter()
            numbers = train_step(state, batch, config, run.spacing)
            if state.nonfinite:
                note_nonfinite(run, log, batch, numbers)
            else:
                recent.append(
                    {
                        **numbers,
                        "rejected": batch["rejected"].float().mean(),
                        "data time": loaded - start,
                        "step time": time.perf_counter() - start,
                    }
                )
            asked = largest(stop.number, device)
            if log:
                follow(run, log, recent, held_out, asked)
            if asked and state.step < config.iterations:
                break
        else:
            asked = 0
    if log:
        log.close()
    return asked


def follow(run: Run, log: RunLog, recent: list[dict], held_out: list[dict], asked: int) -> None:
    """What process 0 does after a step: log, validate, save, when it is time for it or, asked by a signal, to end."""
    config, state = run.config, run.state
    last = state.step == config.iterations
    if recent and (state.step % config.log_every == 0 or last):
        report(run, log, recent)
        recent.clear()
    if not asked and config.probe_every and (state.step % config.probe_every == 0 or last):
        show_probe(run, log)
    if not asked and (state.step % config.validate_every == 0 or last):
        if held_out:
            show_validation(run, log, held_out)
        log.progress(state.history)  # takes half a second, in which all processes wait
    if last:
        run.save(FINAL)
        log.line(f"finished after {state.step} steps: {run.folder / FINAL}")
    elif asked or state.step % config.save_every == 0:
        run.save(LATEST)
    if asked and not last:
        log.line(
            f"stopped by {signal.Signals(asked).name} after step {state.step}, which is saved: go on with --c"
        )


def note_nonfinite(run: Run, log: RunLog | None, batch: dict, numbers: dict[str, Tensor]) -> None:
    """Write down the pairs of a step that was skipped. Raises NonFiniteLoss where it was one too many in a row."""
    pairs, step, file = (
        gather_lists(list(zip(batch["query_case"], batch["key_case"]))),
        run.state.step - 1,
        run.folder / "nonfinite_cases.jsonl",
    )
    loss, norm = numbers["loss"].item(), numbers["gradient norm"].item()
    if log:
        with open(file, "a") as lines:
            lines.write(
                json.dumps(
                    {"step": step, "loss": str(loss), "gradient norm": str(norm), "pairs": pairs}
                )
                + "\n"
            )
        log.line(
            f"WARNING: step {step} was skipped: loss {loss}, gradient norm {norm}; its pairs are in {file}"
        )
    if run.state.nonfinite >= run.config.max_nonfinite:
        cases = ", ".join(f"{query} with {key}" for query, key in pairs)
        raise NonFiniteLoss(
            f"step {step}: loss {loss}, gradient norm {norm}, and so for {run.state.nonfinite} steps in a row; the pairs were {cases}; "
            f"all of them are in {file}"
        )


def report(run: Run, log: RunLog, recent: list[dict]) -> None:
    """One log line and TensorBoard for the steps since the last; a loud warning on collapse."""
    state, config = run.state, run.config
    means = {
        name: float(np.mean([float(numbers[name]) for numbers in recent])) for name in recent[0]
    }
    rejected = means.pop("rejected")
    means["rejection rate"] = rejected / (1 + rejected)
    means["lr"] = state.optimizer.param_groups[0]["lr"]
    means["ema"] = ema_momentum(state.step - 1, config.iterations, config.ema)
    means["memory"] = peak_memory(next(state.model.parameters()).device)
    log.scalars(state.step, means, state.history)
    left = time_left(means["step time"] * (config.iterations - state.step))
    log.line(
        f"step {state.step}/{config.iterations} | loss {means['loss']:.4f} l_r {means['l_r']:.4f} l_dv {means['l_dv']:.4f} "
        f"l_st {means['l_st']:.4f} | spread cls {means['spread cls']:.3f} S {means['spread S']:.3f} T {means['spread T']:.3f} | "
        f"rejected {means['rejection rate']:.0%} | lr {means['lr']:.2e} ema {means['ema']:.5f} | grad {means['gradient norm']:.2f} | "
        f"data {means['data time']:.3f} s, step {means['step time']:.3f} s | memory {means['memory']:.2f} GB | left {left}"
    )
    low = [name for name in ("cls", "S", "T") if means[f"spread {name}"] < COLLAPSED]
    if low:
        log.line(
            f"WARNING: COLLAPSE? the spread of {' and '.join(low)} is under {COLLAPSED}: these features are nearly the same "
            f"for every place in the body and their loss teaches nothing"
        )


def show_probe(run: Run, log: RunLog) -> None:
    """The share of held-out crops that find their match, where there are held-out cases."""
    config, state = run.config, run.state
    if not run.held_out or not config.probe_every:
        return
    pairs = -(-config.probe_pairs // config.batch_size) * config.batch_size
    share = matched_crops_found(
        state.model, run.held_out_batches(PROBE, config.probe_pairs, log), config.precision
    )
    log.scalars(state.step, {"retrieval": share, "retrieval chance": 1 / pairs}, state.history)
    log.line(
        f"probe | {share:.1%} of held-out crops find their match among {pairs}, chance {1 / pairs:.1%}"
    )


def show_validation(run: Run, log: RunLog, held_out: list[dict]) -> None:
    """Losses on held-out cases, and the pictures of their first pair."""
    state, batch = run.state, held_out[0]
    means, output = validate(state, held_out, run.config, run.spacing)
    log.scalars(state.step, means, state.history)
    log.line(
        "validation | "
        + " ".join(f"{name.split()[1]} {value:.4f}" for name, value in means.items())
        + f" | {len(run.held_out)} held-out cases"
    )
    titles = (f"query {batch['query_case'][0]}", f"key {batch['key_case'][0]}")
    log.picture(
        state.step,
        "pair",
        pair_figure(batch["query"][0].numpy(), batch["key"][0].numpy(), run.spacing, titles),
    )
    log.picture(
        state.step,
        "reconstruction",
        reconstruction_figure(
            output.crop[0].cpu(),
            output.predicted[0].cpu(),
            output.masked[0].cpu(),
            state.model.unit,
            run.spacing,
        ),
    )
