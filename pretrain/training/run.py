"""A pretraining as run_steps() drives it: its pairs, and what is logged, validated and saved."""

import functools
import json
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from alice_nnunet.data.match import Matcher
from alice_nnunet.data.pairs import MATCHED, AlignedPairs, PairBatch
from alice_nnunet.data.partners import Partners
from alice_nnunet.files import replacing
from alice_nnunet.geometry import Spacing, grid_of
from alice_nnunet.matcher.baselines import match_by_body, match_same
from alice_nnunet.matcher.learned import EmbeddingMatcher
from alice_nnunet.model.encoders.registry import unit_of
from alice_nnunet.model.losses import voxels_of
from alice_nnunet.model.pretraining.method import PretrainingMethod
from alice_nnunet.names import ANATOMY, PARTNERS
from alice_nnunet.pictures import AIR, pair_figure, reconstruction_figure
from alice_nnunet.pretrain.runtime.device import PROBE, TRAINING, VALIDATION, peak_memory
from alice_nnunet.pretrain.runtime.distributed import gather_lists, largest, own_share
from alice_nnunet.pretrain.runtime.loading import batches
from alice_nnunet.pretrain.runtime.log import RunLog, time_left
from alice_nnunet.pretrain.runtime.steps import Schedule, run_steps
from alice_nnunet.pretrain.training.config import USUAL_THRESHOLD, PretrainConfig
from alice_nnunet.pretrain.training.feature_ranks import FeatureRank, FeatureRanks
from alice_nnunet.pretrain.training.organ_probe import LabeledPerson, organ_probe
from alice_nnunet.pretrain.training.probe import matched_crops_found
from alice_nnunet.pretrain.training.state import State, save_state
from alice_nnunet.pretrain.training.step import (
    StepResult,
    encoder_gradients,
    train_step,
    validate,
)
from alice_nnunet.ranks import rank, world
from alice_nnunet.schedules import ema_momentum

COLLAPSED = 0.1  # spread under which a run warns
EARLY_STEPS = 300  # in which low spreads and ranks are normal
FURTHER_RANKS = ("V", "H")  # of features that no loss compares; H is not in the log line
UNMATCHED = "unmatched.jsonl"  # of the results folder: pairs of crops that do not match
VALIDATION_PAIRS = 32  # at most, but for whole batches: they stay in memory

# At the top of the log, after what the method says of itself
ON_PROBE = (
    "the probe starts high, as random weights see brightness and edges, falls in the first steps "
    "and recovers later. Details: docs/how-to/pretrain.md"
)


def panels(method: PretrainingMethod) -> dict[str, tuple[str, ...]]:
    """What progress.png draws: titles, and names of values."""
    terms = method.terms
    return {
        "losses": (*terms, *(f"validation {name}" for name in terms)),
        "spread (under 0.1: collapse)": tuple(f"spread {name}" for name in method.compared),
        "effective rank": tuple(f"rank {name}" for name in (*method.compared, *FURTHER_RANKS)),
        "gradient norm on the encoder": tuple(f"gradient {name}" for name in terms),
        "share of held-out crops that find their match": ("retrieval", "retrieval chance"),
        "organs of labeled people": ("probe organs", "probe retrieval", "probe chance"),
        "seconds per step": ("step time", "data time"),
    }


def make_matcher(config: PretrainConfig, volumes: Path) -> Matcher:
    """The function that finds the same body part in another volume: config.matcher."""
    if config.matcher == "embedding":
        return EmbeddingMatcher(volumes.parent / ANATOMY, config.max_return)
    if config.matcher == "body":
        return match_by_body
    return match_same


def make_pairs(
    config: PretrainConfig,
    volumes: Path,
    queries: list[str],
    keys: list[str],
    stream: int,
    min_score: float,
) -> AlignedPairs:
    """A stream of pairs: TRAINING, VALIDATION or PROBE."""
    partners = None
    if config.matcher == "embedding" and config.draw == "partners":
        partners = Partners.load(volumes.parent / ANATOMY / PARTNERS)

    size = config.encoder_arguments["crop_size"]
    matcher = make_matcher(config, volumes)
    anatomy = None
    if config.method.vector_channels:
        assert isinstance(matcher, EmbeddingMatcher), "the config asks for it"
        grid = grid_of(size, unit_of(config.encoder, config.encoder_arguments))
        anatomy = functools.partial(matcher.vectors_of_tokens, size=size, grid=grid)

    return AlignedPairs(
        folder=volumes,
        queries=queries,
        keys=keys,
        size=size,
        matcher=matcher,
        min_score=min_score,
        seed=(config.seed, stream),
        same_volume=config.matcher == "same",
        partners=partners,
        by_region=config.queries == "regions",
        inside=config.crops == "inside",
        anatomy=anatomy,
    )


def make_training_pairs(config: PretrainConfig, volumes: Path, training: list[str]) -> AlignedPairs:
    """The stream of pairs to learn from."""
    assert config.min_score is not None, "the job sets it before it draws"
    return make_pairs(config, volumes, training, training, TRAINING, config.min_score)


def with_min_score(config: PretrainConfig, volumes: Path) -> PretrainConfig:
    """The config with the minimum score of the index where the user gave none."""
    if config.min_score is not None:
        return config

    table = volumes.parent / ANATOMY / PARTNERS
    min_score = USUAL_THRESHOLD
    if config.matcher == "embedding" and table.is_file():
        min_score = round(Partners.load(table).threshold, 4)
    return replace(config, min_score=min_score)


@dataclass
class Run:
    """A pretraining and everything it needs to go on.

    Attributes:
        config: Its settings.
        state: Weights, optimizer, steps done.
        volumes: Folder of the preprocessed cases.
        folder: Folder of the results.
        spacing: mm of a voxel (z, y, x).
        data: Description of the data, for the checkpoint.
        adaptation_plan: In nnssl's schema, for the checkpoint.
        training: Cases to learn from.
        held_out: Cases to validate on.
        workers: Processes that load data, 0 for this one.
        people: Labeled people for the organ probe, in process 0 of several.
        validation: Batches of held-out pairs; train() reads them, in process 0 of several.
        feature_ranks: Of the steps since the last report, in process 0 of several.
        warned: Names of the features whose collapse was said and that have not recovered.
        early_said: Whether it was said that features are still alike at the start.
        seen: Query and key of the pairs that this process has had since it started.
    """

    config: PretrainConfig
    state: State
    volumes: Path
    folder: Path
    spacing: Spacing
    data: dict
    adaptation_plan: dict
    training: list[str]
    held_out: list[str]
    workers: int
    people: list[LabeledPerson] = field(default_factory=list)
    validation: list[PairBatch] = field(default_factory=list)
    feature_ranks: FeatureRanks = field(default_factory=FeatureRanks)
    warned: set[str] = field(default_factory=set)
    early_said: bool = False
    seen: set[tuple[str, str]] = field(default_factory=set)

    how_to_resume = "Resume it with --c"

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            steps=self.config.iterations,
            log_every=self.config.log_every,
            validate_every=self.config.validate_every,
            save_every=self.config.save_every,
            probe_every=self.config.probe_every,
            max_nonfinite=self.config.max_nonfinite,
        )

    def training_batches(self) -> Generator[PairBatch, None, None]:
        """This process's batches from the present step to the last.

        A step's pairs depend on how many pairs it has in all processes, not on how many these are.
        """
        pairs = make_training_pairs(self.config, self.volumes, self.training)
        steps = range(self.state.step, self.config.iterations)
        shares = [own_share(step, self.config.batch_size) for step in steps]
        on_gpu = self.state.device.type == "cuda"
        return batches(pairs, shares, self.workers, pin_memory=on_gpu)

    def read_validation(self, log: RunLog) -> None:
        """Read 2 pairs for each held-out case, at least 4 and at most some VALIDATION_PAIRS."""
        wanted = min(max(4, 2 * len(self.held_out)), VALIDATION_PAIRS)
        self.validation = list(self.held_out_batches(VALIDATION, wanted, log))

    def held_out_batches(self, stream: int, wanted: int, log: RunLog) -> Iterator[PairBatch]:
        """Pairs of a held-out person with another one, the same every time.

        Args:
            stream: VALIDATION or PROBE.
            wanted: Number of pairs; batches are whole, so there may be a few more.
            log: Told where held-out pairs do not reach the minimum score, and any are taken.

        Returns:
            Batches; none without held-out cases.
        """
        if not self.held_out:
            return

        keys = self.held_out if len(self.held_out) > 1 else self.held_out + self.training
        size = self.config.batch_size
        shares = [range(first, first + size) for first in range(0, wanted, size)]

        def pairs_over(min_score: float) -> AlignedPairs:
            return make_pairs(self.config, self.volumes, self.held_out, keys, stream, min_score)

        min_score = self.config.min_score
        assert min_score is not None, "the job sets it before it draws"
        pairs = pairs_over(min_score)
        kinds = {pairs.draw(index).kind for index in range(len(shares) * size)}
        if kinds != {MATCHED}:
            log.line(
                f"WARNING: held-out pairs do not reach the minimum match score "
                f"({min_score}); the held-out cases are {', '.join(self.held_out)}. "
                "Validation and the retrieval probe use lower-scoring pairs and are less reliable. "
                "Training is not affected."
            )
            pairs = pairs_over(0.0)

        yield from batches(pairs, shares)

    def take_step(self, batch: PairBatch) -> StepResult:
        self.note_unmatched(batch)
        self.seen.update(zip(batch.query_case, batch.key_case))
        result = train_step(self.state, batch, self.config, self.spacing)
        if rank() == 0 and result.finite:
            crops = 2 * len(batch.query) * world()
            self.feature_ranks.add(result.second_moments, crops)
        return result

    def cases_of(self, batch: PairBatch) -> dict[str, list]:
        """The cases of all processes' pairs."""
        return {"pairs": gather_lists(list(zip(batch.query_case, batch.key_case)))}

    def note_unmatched(self, batch: PairBatch) -> None:
        """Write down this process's pairs that do not match, a line each.

        Several processes add to one file, and each adds its lines in one write.
        """
        lines = []
        for row in batch.unmatched:
            score = batch.score[row].item()
            entry = {
                "step": self.state.step,
                "query": batch.query_case[row],
                "key": batch.key_case[row],
                "kind": batch.kind[row],
                "score": None if math.isnan(score) else score,
            }
            lines.append(json.dumps(entry) + "\n")

        if lines:
            with (self.folder / UNMATCHED).open("a") as file:
                file.write("".join(lines))

    def forget_later_unmatched(self) -> None:
        """Drop the lines of steps that a resumed run takes again."""
        path = self.folder / UNMATCHED
        if not path.is_file():
            return

        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] < self.state.step]
        with replacing(path) as partial:
            partial.write_text("".join(kept))

    def agree_to_stop(self, number: int) -> int:
        """The largest number of a signal that a process has received."""
        return largest(number, self.state.device)

    def report(self, log: RunLog, means: dict[str, float]) -> None:
        """Log one line, and TensorBoard, for the steps since the last; warn of a collapse."""
        config = self.config
        state = self.state

        rejected = means.pop("rejected")  # for each pair that was not
        means["rejection rate"] = rejected / (1 + rejected)
        means["unmatched rate"] = means.pop("unmatched")
        means["content share"] = means.pop("content")
        means["lr"] = state.optimizer.param_groups[0]["lr"]
        means["ema"] = ema_momentum(state.step - 1, config.iterations, config.ema)
        means["memory"] = peak_memory(state.device)
        feature_ranks = self.feature_ranks.take()
        means |= {f"rank {name}": rank.value for name, rank in feature_ranks.items()}
        log.scalars(state.step, means, state.history)

        # Terms of weight 0 are not computed.
        method = state.model
        losses = [f"{name} {number_or_off(means.get(name), 4)}" for name in method.terms]
        spreads = [
            f"{name} {number_or_off(means.get(f'spread {name}'), 3)}" for name in method.compared
        ]
        ranks = [
            f"{name} {number_or_off(means.get(f'rank {name}'), 1)}"
            for name in (*method.compared, "V")
        ]
        compared = f"spread {' '.join(spreads)} | " if spreads else ""

        left = time_left(means["step time"] * (config.iterations - state.step))
        log.line(
            f"step {state.step}/{config.iterations} | loss {means['loss']:.4f} "
            f"{' '.join(losses)} | {compared}rank {' '.join(ranks)} | "
            f"rejected {means['rejection rate']:.0%} "
            f"unmatched {means['unmatched rate']:.0%} "
            f"content {means['content share']:.0%} | "
            f"lr {means['lr']:.2e} ema {means['ema']:.5f} | grad {means['gradient norm']:.2f} | "
            f"data {means['data time']:.3f} s, step {means['step time']:.3f} s | "
            f"memory {means['memory']:.2f} GB | left {left}"
        )

        self.warn_of_collapse(log, means, feature_ranks)

    def warn_of_collapse(
        self, log: RunLog, means: dict[str, float], feature_ranks: dict[str, FeatureRank]
    ) -> None:
        """Warn when a spread or an effective rank falls under its threshold, once for each fall."""
        low = {}
        for name in self.state.model.compared:
            spread = means.get(f"spread {name}")
            if spread is not None and spread < COLLAPSED:
                low[f"spread {name}"] = f"spread({name}) = {spread:.2f} (threshold {COLLAPSED})"
        for name, found in feature_ranks.items():
            if found.value < found.floor:
                low[f"rank {name}"] = (
                    f"rank({name}) = {found.value:.1f} (threshold {found.floor:.1f} "
                    f"for {found.crops} crops)"
                )

        early = self.state.step <= EARLY_STEPS
        if low and early:
            if not self.early_said:
                log.line(
                    f"NOTE: features are still alike: {', '.join(low.values())}. This is normal in "
                    f"the first {EARLY_STEPS} steps; a warning follows if it stays"
                )
            self.early_said = True
        elif low.keys() - self.warned:
            log.line(
                f"WARNING: possible feature collapse: {', '.join(low.values())}. These features "
                "are nearly constant, or lie along few directions, so the corresponding loss "
                "provides little training signal. This is said once until they recover. "
                "See docs/how-to/troubleshooting.md#collapse"
            )
        self.warned = set() if early else set(low)

    def probe(self, log: RunLog) -> None:
        """Log what the encoder's features say about anatomy."""
        if self.held_out:
            self.probe_matches(log)
        if self.people:
            self.probe_organs(log)

    def probe_matches(self, log: RunLog) -> None:
        """Log the share of held-out crops that find their match."""
        config = self.config
        held_out = self.held_out_batches(PROBE, config.probe_pairs, log)
        found = matched_crops_found(self.state, held_out, config.precision)

        means = {"retrieval": found.share, "retrieval chance": found.chance}
        log.scalars(self.state.step, means, self.state.history)
        log.line(
            f"probe | {found.share:.1%} of held-out crops find their match among "
            f"{found.among:.0f} crops, chance {found.chance:.1%}"
        )

    def probe_organs(self, log: RunLog) -> None:
        """Log how well organs are told apart across labeled people."""
        self.state.model.eval()
        found = organ_probe(
            self.state.model.encoder,
            self.people,
            self.config.encoder_arguments["crop_size"],
            self.state.device,
            self.config.precision,
        )

        means = {
            "probe organs": found.organs,
            "probe retrieval": found.retrieval,
            "probe chance": found.chance,
        }
        log.scalars(self.state.step, means, self.state.history)
        log.line(
            f"probe | organs {found.organs:.2f} retrieval {found.retrieval:.2f} "
            f"chance {found.chance:.2f}"
        )

    def log_seen(self, log: RunLog) -> None:
        """Log how many scans, and how many ordered pairs of them, this process has seen."""
        scans = {case for pair in self.seen for case in pair}
        count = len(self.training)
        possible = count * (count - 1)
        pairs = sum(query != key for query, key in self.seen)
        log.line(
            f"seen since the start of this process | {len(scans)} of {count} scans, {pairs} of "
            f"{possible} ordered pairs of scans ({pairs / possible:.1%})"
        )

    def validate(self, log: RunLog) -> None:
        """Log the losses on held-out cases, and pictures of their first pair."""
        self.log_seen(log)
        if not self.validation:
            return

        means, output = validate(self.state, self.validation, self.config, self.spacing)
        scalars = {f"validation {name}": value for name, value in means.items()}
        log.scalars(self.state.step, scalars, self.state.history)
        losses = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        log.line(f"validation | {losses} | {len(self.held_out)} held-out cases")

        batch = self.validation[0]
        norms = encoder_gradients(self.state, batch, self.config, self.spacing)
        gradients = {f"gradient {name}": value for name, value in norms.items()}
        log.scalars(self.state.step, gradients, self.state.history)
        shown = " ".join(f"{name} {value:.3g}" for name, value in norms.items())
        log.line(f"gradient norm on the encoder, of each weighted loss | {shown}")

        row = fullest(batch)
        score = batch.score[row].item()
        pair = pair_figure(
            batch.query[row].numpy(),
            batch.key[row].numpy(),
            self.spacing,
            (
                f"query {batch.query_case[row]}",
                f"key {batch.key_case[row]}, {batch.kind[row]}, score {score:.2f}",
            ),
        )
        log.picture(self.state.step, "pair", pair)

        made = output.reconstruction
        if made is None:
            return
        unit = self.state.model.unit
        # As in MAE's pictures: what was normalised gets the true token's mean and deviation back.
        predicted = voxels_of(made.predicted, made.crop, unit, made.normalise)
        reconstruction = reconstruction_figure(
            made.crop[row].cpu(),
            predicted[row].cpu(),
            made.masked[row].cpu(),
            unit,
            self.spacing,
            self.what_is_normal(),
        )
        log.picture(self.state.step, "reconstruction", reconstruction)

    def what_is_normal(self) -> str:
        """The step, and what a reconstruction looks like then."""
        step = self.state.step
        iterations = self.config.iterations
        early = "normal in the first hundreds of steps: each hidden token is nearly of one grey"
        later = "normal: large shapes, blurred; if tokens are of one grey, l_r has not fallen yet"
        return f"step {step} of {iterations}\n{early if step <= 2 * EARLY_STEPS else later}"

    def save(self, path: Path) -> None:
        save_state(path, self.state, self.config, self.data, self.adaptation_plan)


def fullest(batch: PairBatch) -> int:
    """The pair whose two crops show the most of a body, for a picture."""
    content = [(crops[:, 0] > AIR).float().mean((1, 2, 3)) for crops in (batch.query, batch.key)]
    return int(torch.minimum(*content).argmax())


def number_or_off(value: float | None, digits: int) -> str:
    """'0.1234', or 'off' for what is not computed."""
    return "off" if value is None else f"{value:.{digits}f}"


def train(run: Run) -> int:
    """Train from the present step to the last. Process 0 of several logs, validates and saves.

    Returns:
        0, or the number of the signal that stopped the run after a step, which is saved.

    Raises:
        NonFiniteLoss: config.max_nonfinite steps in a row were skipped.
        UserError: The data cannot be read, or the checkpoint cannot be written.
    """
    log = None
    if rank() == 0:
        run.forget_later_unmatched()
        log = RunLog(
            run.folder,
            run.state.step,
            panels(run.state.model),
            run.config.as_dict(),
            thresholds={"spread": COLLAPSED},
        )
        if run.state.step == 0:
            for hint in (*run.state.model.hints, ON_PROBE):
                log.line(f"how to read this log | {hint}")
        run.read_validation(log)
        if run.state.step == 0 and run.config.probe_every:
            run.probe(log)  # of random weights, to compare with

    stopped_by = run_steps(run, log)
    if log:
        log.close()
    return stopped_by
