"""alice-pretrain: pretrain an encoder on the unlabeled volumes of an nnU-Net dataset."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.data.pairs import NoMatch
from alice_nnunet.data.volumes import case_names
from alice_nnunet.datasets.raw_dataset import dataset_name, nnunet_folder, open_raw_dataset
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.files import file_sha256, write_json_atomically
from alice_nnunet.model.presets import CROPS, PRESETS
from alice_nnunet.names import ANATOMY, CONFIGURATION, FINAL, LATEST, PRETRAIN_PLANS
from alice_nnunet.options import add_processes_option
from alice_nnunet.pretrain.commands.embed import ensure_index
from alice_nnunet.pretrain.datasets.preprocessed import (
    choose_device,
    is_preprocessed,
    preprocessed_volumes,
    split,
)
from alice_nnunet.pretrain.datasets.pretrain_plans import data_description
from alice_nnunet.pretrain.runtime.distributed import Team, launch, launched, team
from alice_nnunet.pretrain.runtime.steps import NonFiniteLoss
from alice_nnunet.pretrain.runtime.stop import exit_code
from alice_nnunet.pretrain.training.adaptation import adaptation_plan
from alice_nnunet.pretrain.training.config import (
    MATCHERS,
    PretrainConfig,
    Settings,
    config_from_dict,
    make_config,
    read_settings,
)
from alice_nnunet.pretrain.training.dry_run import draw_first_pair, print_plan
from alice_nnunet.pretrain.training.run import Run, train
from alice_nnunet.pretrain.training.state import build_state, load_state
from alice_nnunet.ranks import rank, world

# Settings that --c may change: they decide how a run is computed and when it is saved, not what comes out of it.
CHANGEABLE = (
    "workers",
    "accumulate",
    "checkpoint_blocks",
    "compile",
    "max_nonfinite",
    "log_every",
    "validate_every",
    "probe_every",
    "probe_pairs",
    "save_every",
)


def parser() -> CommandParser:
    p = CommandParser(
        "alice-pretrain", description="Pretrain an encoder on unlabeled volumes (Alice, ICCV 2023)."
    )
    p.add_argument(
        "-d",
        required=True,
        metavar="ID",
        help="dataset ID or name; its volumes are preprocessed if they are not yet",
    )
    p.add_argument(
        "-encoder", default="nnformer", choices=sorted(PRESETS), help="default: nnformer"
    )
    p.add_argument("-preset", default="paper", choices=sorted(CROPS), help="default: paper")
    p.add_argument(
        "-matcher",
        choices=MATCHERS,
        help="how the same body part is found in another person: learned by alice-embed, which "
        "runs first where it has not; relative to the body's box; or not at all, the same volume twice (default: embedding)",
    )
    p.add_argument("-device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    p.add_argument(
        "-num_gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs of this machine that train together, with batch_size pairs each; "
        "with -device cpu so many processes (default: 1; more machines: docs/how-to/cluster.md)",
    )
    p.add_argument(
        "-config",
        type=Path,
        metavar="FILE",
        help="JSON file of settings, such as another run's config.json",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="assignments",
        help="change one setting, e.g. --set iterations=200; may be repeated",
    )
    add_processes_option(p, "that preprocess and load")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be done and how much memory it takes, draw the first pair, and end",
    )
    p.add_argument(
        "--c",
        action="store_true",
        dest="resume",
        help="go on where the run stopped; starts anew if there is none",
    )
    return p


@dataclass(frozen=True)
class Job:
    """What a command comes down to. checkpoint: to go on from; folder: of the results; volumes: folder of the preprocessed cases."""

    config: PretrainConfig
    checkpoint: Path | None
    plans: dict
    cases: list[str]
    data: dict
    volumes: Path
    folder: Path

    @property
    def anatomy(self) -> Path:
        return self.volumes.parent / ANATOMY


@command("alice-pretrain")
def main(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    device = choose_device(arguments.device)
    if arguments.num_gpus < 1:
        raise UserError(f"-num_gpus must be at least 1, got {arguments.num_gpus}")
    if arguments.dry_run:
        if launched():
            raise UserError(
                "--dry-run is for one process: leave torchrun out and say how many with -num_gpus"
            )
        dry_run(arguments, device)
        return
    if arguments.num_gpus > 1 and not launched():
        make_config(dataset_name(arguments.d), settings_of(arguments))  # one message, not N
        raise SystemExit(launch(arguments.num_gpus, sys.argv[1:] if argv is None else argv, device))
    with team(device) as processes:
        stopped_by = pretrain(arguments, processes)
        processes.wait()  # for process 0 to have saved: where one ends, the others are ended
    if stopped_by:
        raise SystemExit(exit_code(stopped_by))


def pretrain(arguments, processes: Team) -> int:
    """The whole run. Returns the signal that stopped it before its end, or 0."""
    name, settings = dataset_name(arguments.d), settings_of(arguments)
    plans, volumes = processes.first(
        lambda: preprocessed_volumes(
            name, arguments.np, CROPS[arguments.preset].spacing, settings.encoder["crop_size"]
        )
    )
    job = make_job(arguments, name, settings, plans, volumes, world())
    if job.config.matcher == "embedding":
        if rank() == 0:
            ensure_index(name, arguments.preset, plans, volumes, processes.device, arguments.np)
        processes.wait()
        job.data["embedding_sha256"] = file_sha256(job.anatomy / FINAL)
    try:
        return train(make_run(job, processes, arguments))
    except (NonFiniteLoss, NoMatch) as error:
        raise UserError(f"{error}. The last checkpoint is intact: {job.folder}") from error
    except OSError as error:
        raise UserError(
            f"{error.filename or job.folder}: {error.strerror or error}. The last checkpoint is intact: {job.folder}; go on with "
            f"--c when this is mended"
        ) from error


def dry_run(arguments, device: torch.device) -> None:
    """Print what the command would do, its memory, and draw its first pair; nothing is started, no earlier run touched."""
    name, settings = dataset_name(arguments.d), settings_of(arguments)
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    if not is_preprocessed(preprocessed):
        raw = open_raw_dataset(name)
        config = make_config(name, settings, len(raw.dataset_json["channel_names"]))
        print(
            f"{name}: {len(raw.cases)} cases, not (completely) preprocessed yet: that comes first, then there is a first pair to draw"
        )
        print_plan(
            config,
            device,
            arguments.num_gpus,
            results_folder(name, arguments.encoder),
            0,
            len(raw.cases),
        )
        return
    plans, volumes = preprocessed_volumes(
        name, arguments.np, CROPS[arguments.preset].spacing, settings.encoder["crop_size"]
    )
    job = make_job(arguments, name, settings, plans, volumes, arguments.num_gpus)
    config, step = job.config, load_checkpoint(job.checkpoint)["step"] if job.checkpoint else 0
    if config.matcher == "embedding" and not all(
        (job.anatomy / file).is_file() for file in (FINAL, *(f"{case}.npy" for case in job.cases))
    ):
        print(
            "the matcher is not learned yet, or not every volume indexed: that comes first (alice-embed); here the pair goes by the body's box"
        )
        config = dataclasses.replace(config, matcher="body")
    training, held_out = split(job.cases, config.validation_share, config.seed)
    print_plan(
        job.config, device, arguments.num_gpus, job.folder, step, len(training), len(held_out)
    )
    draw_first_pair(
        config,
        volumes,
        training,
        tuple(job.data["spacing"]),
        step * config.batch_size * arguments.num_gpus,
        job.folder,
    )


def settings_of(arguments) -> Settings:
    """The settings that the command line asks for."""
    matcher = [f"matcher={arguments.matcher}"] if arguments.matcher else []
    return read_settings(
        arguments.encoder, arguments.preset, arguments.assignments + matcher, arguments.config
    )


def results_folder(name: str, encoder: str) -> Path:
    return (
        nnunet_folder("nnUNet_results")
        / name
        / f"AlicePretrain__{PRETRAIN_PLANS}__{CONFIGURATION}"
        / encoder
    )


def make_job(
    arguments, name: str, settings: Settings, plans: dict, volumes: Path, processes: int
) -> Job:
    """What the command comes down to on preprocessed volumes. Raises UserError where it cannot go on with the run that is there."""
    cases, folder = case_names(volumes), results_folder(name, arguments.encoder)
    data = data_description(plans, cases)
    config = make_config(name, settings, len(data["channels"]))
    checkpoint = (
        next((folder / n for n in (FINAL, LATEST) if (folder / n).is_file()), None)
        if arguments.resume
        else None
    )
    if checkpoint:
        config = resumed_config(
            checkpoint,
            arguments.preset,
            settings.given,
            data,
            volumes.parent / ANATOMY / FINAL,
            processes,
        )
    return Job(config, checkpoint, plans, cases, data, volumes, folder)


def make_run(job: Job, processes: Team, arguments) -> Run:
    """A new run in an empty folder, or the one in job.checkpoint."""
    config, device = job.config, processes.device
    training, held_out = split(job.cases, config.validation_share, config.seed)
    state = (
        load_state(job.checkpoint, config, device)
        if job.checkpoint
        else build_state(config, device)
    )
    if rank() == 0:
        prepare_folder(job.folder, config, job.checkpoint, state.step, arguments.resume)
        several = (
            f", {world()} processes with {config.batch_size} pairs each" if world() > 1 else ""
        )
        print(
            f"{config.encoder} {config.preset} on {device}{several}: {len(training)} training and {len(held_out)} held-out volumes, "
            f"{sum(p.numel() for p in state.model.encoder.parameters()) / 1e6:.1f} M encoder parameters, results in {job.folder}",
            flush=True,
        )
    workers = config.workers
    if workers is None:
        workers = 0 if device.type == "cpu" else arguments.np
    return Run(
        config,
        state,
        job.volumes,
        job.folder,
        tuple(job.data["spacing"]),
        job.data,
        adaptation_plan(job.plans, config),
        training,
        held_out,
        workers,
    )


def prepare_folder(
    folder: Path, config: PretrainConfig, checkpoint: Path | None, step: int, resume: bool
) -> None:
    """The folder of a run that starts or goes on, with its config; a new run keeps an earlier one beside it."""
    if checkpoint:
        print(f"going on from step {step} of {checkpoint}", flush=True)
    else:
        if resume:
            print(f"--c: no checkpoint in {folder}, starting a new run", flush=True)
        move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomically(folder / "config.json", config.as_dict())


def resumed_config(
    checkpoint: Path, preset: str, given: dict, data: dict, embedding: Path, processes: int
) -> PretrainConfig:
    """The config of the run that goes on. Raises UserError if the command, the data or the embedding are not those of the run."""
    saved = load_checkpoint(checkpoint)
    pairs = saved["config"]["batch_size"] * saved.get("processes", 1)
    if pairs % processes:
        raise UserError(
            f"--c goes on with the run as it was, with {pairs} pairs in a step: {processes} processes cannot share them evenly"
        )
    changes = {name: value for name, value in given.items() if name in CHANGEABLE}
    try:
        config = config_from_dict({**saved["config"], **changes, "batch_size": pairs // processes})
    except ValueError as error:
        raise UserError(f"--c: {error}") from None
    now = config.as_dict()
    values = {**now, **now["method"], **now["encoder_arguments"]}
    as_saved = lambda value: json.loads(json.dumps(value))  # lists for tuples
    changed = [
        f"{n} is {values[n]} in the run and {v} in the command"
        for n, v in given.items()
        if values[n] != as_saved(v)
    ]
    if config.preset != preset:
        changed.append(f"preset is {config.preset} in the run and {preset} in the command")
    changed += [
        f"the data's {n} is {saved['data'][n]} in the run and {data[n]} now"
        for n in data
        if saved["data"][n] != data[n]
    ]
    if config.matcher == "embedding" and not (
        embedding.is_file() and file_sha256(embedding) == saved["data"]["embedding_sha256"]
    ):
        changed.append(f"{embedding} is not the embedding that the run found its pairs with")
    if changed:
        raise UserError(
            f"--c goes on with the run as it was, but {'; '.join(changed)}. Start a new run without --c "
            f"(the present one is moved aside), or give the same settings"
        )
    return config


def move_aside(folder: Path) -> None:
    """Keep an earlier run: ENCODER becomes ENCODER_1, ENCODER_2, ..."""
    if not any(folder.glob("checkpoint_*.pth")):
        return
    number = next(
        n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}_{n}").exists()
    )
    folder.rename(folder.with_name(f"{folder.name}_{number}"))
    print(
        f"an earlier run was in {folder}; it is kept as {folder.name}_{number} (to go on with a run use --c)",
        flush=True,
    )
