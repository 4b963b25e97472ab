"""What gpu.py runs: each case measures one thing and gives one row of a table.

Memory is in GB of 10^9 bytes. On a CPU, where a case is only tried out, it is that of the tensors
that operations create.
"""

import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing
from bare import ABSENT
from pretrain_step import (
    matmul_peak,
    prepare,
    random_batch,
    seconds,
    step_flops,
    time_with_data,
)

from alice_nnunet.data.pairs import PairBatch, noise_pairs
from alice_nnunet.finetuning.block import AliceBlock
from alice_nnunet.finetuning.network import build_network
from alice_nnunet.finetuning.optimizers import build_optimizer, encoder_depths, parameter_groups
from alice_nnunet.finetuning.pretrained import EncoderOrigin, as_json
from alice_nnunet.finetuning.recipes import RECIPES
from alice_nnunet.memory import GB, Ledger
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.planning.step_memory import training_memory, training_step
from alice_nnunet.pretrain.embedding import state as matcher_state
from alice_nnunet.pretrain.embedding import step as matcher_step
from alice_nnunet.pretrain.embedding.config import EmbedConfig, embed_config
from alice_nnunet.pretrain.runtime.distributed import environment_of_all, team
from alice_nnunet.pretrain.training.config import PretrainConfig, make_config, read_settings
from alice_nnunet.pretrain.training.dry_run import step_bytes
from alice_nnunet.pretrain.training.state import State, build_state, load_state, save_state
from alice_nnunet.pretrain.training.step import train_step

CPU = torch.device("cpu")
NAME = "Dataset000_Gpu"
SPACING = (1.5, 0.76, 0.76)  # mm
IDENTITY = {"scale": [1.0], "shift": [0.0], "low": [None], "high": [None], "flip_axes": []}
CLASSES = 14  # of the fine-tuning steps, as in BTCV

# How far a step may be from the CPU's in fp32, relative: its loss, and the norm of the difference
# of all gradients. fp32 differs by the order of additions, bf16 keeps 8 bits.
TOLERANCES = {"fp32": (1e-4, 1e-3), "bf16": (0.02, 0.2)}

# Sizes to try this script on a CPU in seconds
TOY = {
    "vit": ("crop_size=16,32,32", "width=48", "depth=4", "heads=2", "batch_size=2"),
    "swin": ("crop_size=32,32,32", "batch_size=2"),
    "nnformer": ("crop_size=16,32,32", "batch_size=2"),
}
TOY_DECODER = ("decoder_width=48", "decoder_heads=2", "decoder_depth=1", "head_hidden=64")
TOY_MATCHER = ("patch_size=16,32,32", "crop_size=16,32,32", "points=60", "hardest=20")
TOY_SIDE = 256  # of the matrices of the peak

# Voxels of a training patch, 2 of which are a batch. The recipes have those of preset paper.
PATCHES = {"tiny": (32, 64, 64), "small": (64, 128, 128)}
TOY_PATCH = (32, 32, 32)


@dataclass(frozen=True)
class Request:
    """What the command was asked for.

    Attributes:
        device: that is measured.
        encoders: their names.
        presets: their names.
        repeats: timed steps.
        toy: whether everything has a tiny size.
        readers: processes that read data, None for random crops only.
    """

    device: torch.device
    encoders: tuple[str, ...]
    presets: tuple[str, ...]
    repeats: int
    toy: bool
    readers: int | None

    def config(self, encoder: str, preset: str, *more: str) -> PretrainConfig:
        """Settings of pretraining steps."""
        settings = ["matcher=body", "iterations=100", "warmup_iterations=0"]
        if self.toy:
            settings += [*TOY[encoder], *TOY_DECODER]
        return make_config(NAME, read_settings(encoder, preset, [*settings, *more]))

    def why_not_compiled(self, compile_: str) -> str:
        """Why a case that is compiled is skipped, "" if it is not."""
        if compile_ == "on" and self.device.type == "cpu":
            return "compiled for a GPU only"
        return ""

    def sizes(self) -> list[tuple[str, str]]:
        """Encoders and presets to measure; all presets are one toy."""
        presets = self.presets[:1] if self.toy else self.presets
        return [(encoder, preset) for preset in presets for encoder in self.encoders]


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        names: columns that say what it is.
        measure: gives the other columns.
        skip: why it is not measured, "" if it is.
    """

    names: dict[str, str]
    measure: Callable[[], dict]
    skip: str = ""

    def row(self, in_time: bool) -> dict:
        """All columns. What is absent is skipped, and an error is a column: the others go on."""
        if self.skip or not in_time:
            return {**self.names, "skipped": self.skip or "no time left"}
        try:
            return {**self.names, **self.measure()}
        except ModuleNotFoundError as error:
            return {**self.names, "skipped": str(error)}
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0]
            return {**self.names, "failed": f"{type(error).__name__}: {first_line}"}
        finally:
            torch._dynamo.reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def cases_of(section: str, request: Request) -> Iterator[Case]:
    """The cases of a section of gpu.py, in its order."""
    sections = {
        "correctness": correctness,
        "resume": resume,
        "pretraining": pretraining,
        "fine-tuning": fine_tuning,
        "processes": processes,
        "matcher": matcher,
    }
    return sections[section](request)


# ---------------------------------------------------------------------------------------------
# Correctness


def correctness(request: Request) -> Iterator[Case]:
    for encoder in request.encoders:
        for precision in ("fp32", "bf16"):
            for compile_ in ("off", "on"):
                config = request.config(
                    encoder, "tiny", f"precision={precision}", f"compile={compile_}"
                )
                yield Case(
                    {"encoder": encoder, "precision": precision, "compile": compile_},
                    functools.partial(against_cpu, config, request.device),
                    request.why_not_compiled(compile_),
                )


def against_cpu(config: PretrainConfig, device: torch.device) -> dict:
    """A step on the device against the CPU's in fp32, from the same weights and views."""
    plain = dataclasses.replace(config, precision="fp32", compile="off")
    batch = seeded_pairs(config, 2)
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        expected, expected_gradient = loss_and_gradient(plain, batch, CPU)
        loss, gradient = loss_and_gradient(config, batch, device)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32

    of_loss = abs(loss - expected) / abs(expected)
    of_gradient = ((gradient - expected_gradient).norm() / expected_gradient.norm()).item()
    most_of_loss, most_of_gradient = TOLERANCES[config.precision]
    return {
        "loss off by": f"{of_loss:.1e}",
        "gradient off by": f"{of_gradient:.1e}",
        "agrees": of_loss <= most_of_loss and of_gradient <= most_of_gradient,
    }


def seeded_pairs(config: PretrainConfig, number: int, seed: int = 0) -> PairBatch:
    """So many pairs of noise on the CPU, the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return noise_pairs(number, (1, *config.encoder_arguments["crop_size"]))


def loss_and_gradient(
    config: PretrainConfig, batch: PairBatch, device: torch.device
) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a step from the first weights."""
    state = build_state(config, device)
    unclipped = dataclasses.replace(config, clip_grad=1e9)
    loss = train_step(state, batch, unclipped, SPACING).loss.item()
    return loss, gradient_of(state)


def gradient_of(state: State) -> torch.Tensor:
    """Of all weights in one vector of float64, on the CPU."""
    gradients = [p.grad.flatten() for p in state.model.parameters() if p.grad is not None]
    return torch.cat(gradients).cpu().double()


# ---------------------------------------------------------------------------------------------
# Resume


def resume(request: Request) -> Iterator[Case]:
    for encoder in request.encoders:
        config = request.config(encoder, "tiny", "precision=bf16", "compile=off")
        yield Case(
            {"encoder": encoder, "precision": "bf16"},
            functools.partial(stopped_or_not, config, request.device),
        )


def stopped_or_not(config: PretrainConfig, device: torch.device) -> dict:
    """Four steps at once against two, a checkpoint, and two more."""
    batches = [seeded_pairs(config, 2, number) for number in range(4)]

    def train(state: State, numbers: range) -> State:
        for number in numbers:
            train_step(state, batches[number], config, SPACING)
        return state

    unbroken = train(build_state(config, device), range(4))
    again = train(build_state(config, device), range(4))
    stopped = train(build_state(config, device), range(2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint_latest.pth"
        save_state(path, stopped, config, {}, {})
        resumed = train(load_state(path, config, device), range(2, 4))

    # A GPU may add in another order each time. Then resuming may differ as much as repeating.
    of_resumed = largest_difference(unbroken, resumed)
    of_repeated = largest_difference(unbroken, again)
    return {
        "resumed off by": f"{of_resumed:.1e}",
        "repeated off by": f"{of_repeated:.1e}",
        "agrees": of_resumed <= 10 * of_repeated,
    }


def largest_difference(one: State, other: State) -> float:
    """Of any weight."""
    weights = zip(one.model.state_dict().values(), other.model.state_dict().values())
    return max((a.double() - b.double()).abs().max().item() for a, b in weights)


# ---------------------------------------------------------------------------------------------
# Pretraining


def pretraining(request: Request) -> Iterator[Case]:
    for encoder, preset in request.sizes():
        for compile_ in ("off", "on"):
            config = request.config(encoder, preset, f"compile={compile_}", "precision=auto")
            yield Case(
                {"encoder": encoder, "preset": preset, "compile": compile_},
                functools.partial(pretraining_step, config, request),
                request.why_not_compiled(compile_),
            )

    if request.readers is None:
        return
    skip = f"not installed: {', '.join(ABSENT)}" if ABSENT else ""
    for encoder, preset in request.sizes():
        yield Case(
            {"encoder": encoder, "preset": preset, "compile": "auto"},
            functools.partial(step_with_data, encoder, preset, request),
            skip,
        )


def pretraining_step(config: PretrainConfig, request: Request) -> dict:
    device = request.device
    state = build_state(config, device)
    batch = random_batch(config, device)

    def step() -> None:
        train_step(state, batch, config, SPACING)

    estimate = 0
    if config.compile == "off":  # as --dry-run estimates, before anything ran
        fixed, pair = step_bytes(state, config)
        estimate = fixed + pair * config.batch_size
    measured = peak_of(step, state.model, device)
    beside = beside_tensors(device)
    time_of_step = seconds(step, device, request.repeats)

    peak = matmul_peak(device, config.precision, TOY_SIDE if request.toy else None)
    flops = step_flops(config, device)
    return {
        "pairs": config.batch_size,
        "step, s": f"{time_of_step:.4g}",
        "TFLOP": f"{flops / 1e12:.3g}",
        "of the matmul peak": f"{flops / time_of_step / peak:.0%}",
        "peak, GB": f"{measured / GB:.3g}",
        "estimate, GB": f"{estimate / GB:.3g}" if estimate else "",
        **beside,
    }


def step_with_data(encoder: str, preset: str, request: Request) -> dict:
    """Steps whose pairs are read from the CT that ships with the package."""
    assert request.readers is not None
    config = request.config(encoder, preset, "precision=auto")
    with tempfile.TemporaryDirectory() as folder:
        volumes = prepare(None, preset, Path(folder) / preset, request.readers)
        state = build_state(config, request.device)
        taken = time_with_data(config, state, volumes, request.repeats, request.readers)
    return {
        "pairs": config.batch_size,
        "step with reading, s": f"{taken:.4g}",
    }


def peak_of(step: Callable[[], None], model: torch.nn.Module, device: torch.device) -> int:
    """The most bytes of tensors in two steps: in the second one the optimizer's exist."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        step()
        return torch.cuda.max_memory_allocated(device)

    ledger = Ledger()
    with ledger:
        ledger.count([*model.parameters(), *model.buffers()])
        step()
        step()
    return ledger.peak


def beside_tensors(device: torch.device) -> dict:
    """GB that torch keeps for tensors, and that the device has in use beside it."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.max_memory_reserved(device)
    outside = total - free - torch.cuda.memory_reserved(device)
    return {"kept by torch, GB": f"{reserved / GB:.3g}", "outside, GB": f"{outside / GB:.3g}"}


# ---------------------------------------------------------------------------------------------
# Fine-tuning


def fine_tuning(request: Request) -> Iterator[Case]:
    for encoder, preset in request.sizes():
        for compile_ in ("off", "on"):
            yield Case(
                {"encoder": encoder, "preset": preset, "compile": compile_},
                functools.partial(fine_tuning_step, encoder, preset, compile_ == "on", request),
                request.why_not_compiled(compile_),
            )


def fine_tuning_step(encoder: str, preset: str, compiled: bool, request: Request) -> dict:
    """A step in nnU-Net's precision, fp16 on a GPU and fp32 on a CPU; losses are not scaled."""
    device = request.device
    patch, batch = patches_of(encoder, preset, request)
    block = block_of(encoder, preset, request)
    network = build_network(block, 1, CLASSES, deep_supervision=True).to(device)
    groups = parameter_groups(
        network.named_parameters(),
        encoder_depths(block.origin.arguments),
        block.recipe.layer_decay,
        block.recipe.frozen_epochs,
    )
    optimizer = build_optimizer(groups, block.recipe)
    called = torch.compile(network) if compiled else network
    image = torch.rand(batch, 1, *patch, device=device)
    on_gpu = device.type == "cuda"

    def step() -> None:
        with torch.autocast(device.type, torch.float16 if on_gpu else None, enabled=on_gpu):
            training_step(called, optimizer, image)

    measured = peak_of(step, network, device)
    beside = beside_tensors(device)
    time_of_step = seconds(step, device, request.repeats)
    estimate = training_memory(block, 1, CLASSES, patch, batch, autocast=on_gpu)
    return {
        "patch": " x ".join(map(str, patch)),
        "batch": batch,
        "step, s": f"{time_of_step:.4g}",
        "peak, GB": f"{measured / GB:.3g}",
        "estimate, GB": f"{estimate / GB:.3g}",
        **beside,
    }


def patches_of(encoder: str, preset: str, request: Request) -> tuple[tuple[int, int, int], int]:
    """Voxels of a training patch, and patches in a batch."""
    if request.toy:
        return TOY_PATCH, 1
    if preset == "paper":
        return RECIPES[encoder].patch_size, RECIPES[encoder].batch_size
    return PATCHES[preset], 2


def block_of(encoder: str, preset: str, request: Request) -> AliceBlock:
    """The alice block of plans for an encoder with random weights."""
    arguments = request.config(encoder, preset).encoder_arguments
    origin = EncoderOrigin(
        path="none", sha256="none", name=encoder, arguments=as_json(arguments), data={}
    )
    network_arguments = PRESETS[encoder][preset].network
    return AliceBlock(origin, network_arguments, IDENTITY, RECIPES[encoder].recipe)


# ---------------------------------------------------------------------------------------------
# Several processes


def processes(request: Request) -> Iterator[Case]:
    count = torch.cuda.device_count() if request.device.type == "cuda" else 2
    for encoder in request.encoders:
        config = request.config(encoder, "tiny", "precision=fp32", "compile=off")
        yield Case(
            {"encoder": encoder, "processes": str(count)},
            functools.partial(together, config, count, request),
            "one GPU" if count < 2 else "",
        )


def together(config: PretrainConfig, count: int, request: Request) -> dict:
    """A step of a pair in each process against one process's of all pairs."""
    _, expected = loss_and_gradient(config, seeded_pairs(config, count), request.device)

    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(
            step_of_one,
            (config, request.device, Path(folder), environment_of_all(count), request.repeats),
            nprocs=count,
        )
        found = [
            torch.load(Path(folder) / f"{number}.pt", weights_only=True) for number in range(count)
        ]

    first, *others = [one["gradient"] for one in found]
    off = ((first - expected).norm() / expected.norm()).item()
    same = all(torch.equal(first, other) for other in others)
    return {
        "gradient off by": f"{off:.1e}",
        "same in all": same,
        "step, s": f"{max(one['seconds'] for one in found):.4g}",
        "agrees": same and off <= TOLERANCES["fp32"][1],
    }


def step_of_one(
    number: int,
    config: PretrainConfig,
    device: torch.device,
    folder: Path,
    environment: dict[str, str],
    repeats: int,
) -> None:
    """What each of the processes does; writes its gradient and time into the folder."""
    os.environ.update(environment, RANK=str(number), LOCAL_RANK=str(number))
    os.environ.pop("ALICE_STOP_WITH_STDIN", None)
    count = int(environment["WORLD_SIZE"])
    all_pairs = seeded_pairs(config, count)
    batch = dataclasses.replace(
        noise_pairs(1, (1, *config.encoder_arguments["crop_size"])),
        query=all_pairs.query[number : number + 1],
        key=all_pairs.key[number : number + 1],
    )

    with team(device) as joined:
        _, gradient = loss_and_gradient(config, batch, joined.device)
        state = build_state(config, joined.device)

        def step() -> None:
            train_step(state, batch, config, SPACING)

        found = {"gradient": gradient, "seconds": seconds(step, joined.device, repeats)}
        torch.save(found, folder / f"{number}.pt")


# ---------------------------------------------------------------------------------------------
# Matcher


def matcher(request: Request) -> Iterator[Case]:
    presets = ("tiny",) if request.toy else ("small", "paper")
    for preset in presets:
        for features in ("sam", "context"):
            settings = [f"features={features}", "iterations=100", "precision=auto"]
            if request.toy:
                settings += [*TOY_MATCHER, "batch_size=2"]
            config = embed_config(NAME, preset, settings)
            yield Case(
                {"features": features, "preset": preset},
                functools.partial(step_of_matcher, config, request),
            )


def step_of_matcher(config: EmbedConfig, request: Request) -> dict:
    device = request.device
    state = matcher_state.build_state(config, device)
    generator = torch.Generator().manual_seed(0)
    half = torch.tensor(config.crop_size) * config.voxel / 2  # mm
    places = torch.rand(config.batch_size, config.points, 3, generator=generator) - 0.5
    batch = {
        "crop": torch.rand(config.batch_size, 1, *config.crop_size, generator=generator),
        "points": places * half,
        "middle": torch.zeros(config.batch_size, 3),
        "number": torch.arange(config.batch_size),
    }

    def step() -> None:
        matcher_step.train_step(state, batch, config)

    measured = peak_of(step, state.network, device)
    beside = beside_tensors(device)
    return {
        "volumes": config.batch_size,
        "step, s": f"{seconds(step, device, request.repeats):.4g}",
        "peak, GB": f"{measured / GB:.3g}",
        **beside,
    }
