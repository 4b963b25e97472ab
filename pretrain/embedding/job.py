"""The work of alice-embed: train the matcher of a dataset, or take released weights, and index."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alice_nnunet.checkpoint import load_checkpoint, save_checkpoint
from alice_nnunet.data.volumes import case_names
from alice_nnunet.datasets.raw_dataset import dataset_name, open_raw_dataset
from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError
from alice_nnunet.files import locked, locked_in_turn, write_json_atomically
from alice_nnunet.matcher.presets import PRESETS
from alice_nnunet.matcher.released import from_released
from alice_nnunet.model.presets import CROPS
from alice_nnunet.names import ANATOMY, EMBED_CONFIG, FINAL, LATEST, LOCK
from alice_nnunet.pretrain.datasets.preprocessed import (
    existing_volumes,
    is_preprocessed,
    preprocessed_volumes,
    split_cases,
)
from alice_nnunet.pretrain.datasets.pretrain_plans import data_description, spacing_of
from alice_nnunet.pretrain.embedding.config import (
    EmbedConfig,
    embed_config,
    embed_config_from_dict,
)
from alice_nnunet.pretrain.embedding.dry_run import print_plan
from alice_nnunet.pretrain.embedding.indexing import index_volumes
from alice_nnunet.pretrain.embedding.run import EmbedRun, train
from alice_nnunet.pretrain.embedding.show import show_matches
from alice_nnunet.pretrain.embedding.state import build_state, load_state
from alice_nnunet.pretrain.runtime.device import (
    autocast,
    choose_device,
    settled_precision,
    warn_of_emulation,
)
from alice_nnunet.pretrain.runtime.estimate import millions, precision_name
from alice_nnunet.pretrain.runtime.log import check_loggers
from alice_nnunet.pretrain.runtime.steps import NonFiniteLoss
from alice_nnunet.settings.reading import differences
from alice_nnunet.text import millimetres


@dataclass(frozen=True)
class EmbedJob:
    """The matcher and the index of one preprocessed dataset, to be made.

    Attributes:
        config: Settings of the training.
        plans: Of the preprocessed volumes.
        volumes: Folder of the preprocessed cases.
        device: Where to train and index.
        workers: Processes that load data, where the device is not the CPU.
    """

    config: EmbedConfig
    plans: dict
    volumes: Path
    device: torch.device
    workers: int

    @property
    def folder(self) -> Path:
        """Where the matcher and the index go."""
        return self.volumes.parent / ANATOMY

    def data(self) -> dict:
        """The description of the data, for the checkpoint."""
        return data_description(self.plans, case_names(self.volumes))


def prepare_job(config: EmbedConfig, device: str | None, processes: int) -> EmbedJob:
    """The job of a dataset, which is preprocessed first where it is not yet.

    Args:
        config: Settings; the dataset in it may also be an ID.
        device: cpu, cuda, or None for cuda where there is one.
        processes: That preprocess and load.
    """
    chosen_device = choose_device(device, config.preset)
    name = dataset_name(config.dataset)
    size = CROPS[config.preset].size
    plans, volumes = preprocessed_volumes(name, processes, config.preset, size)

    config = dataclasses.replace(config, dataset=name)
    return EmbedJob(config, plans, volumes, chosen_device, processes)


def embed(
    config: EmbedConfig,
    device: str | None,
    processes: int,
    released: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Train the matcher of a dataset, or take released weights, and index all volumes.

    Args:
        config: Settings; the dataset in it may also be an ID.
        device: cpu, cuda, or None for cuda where there is one.
        processes: That preprocess and load.
        released: Checkpoint of SAM or UAE to take the weights from instead of training.
        overwrite: Remove an earlier training and index.

    Returns:
        0, or the signal that stopped the training, which is saved.
    """
    check_loggers()
    weights = read_released(released, config) if released else None
    job = prepare_job(config, device, processes)

    if weights:
        take_released(weights, job.config, job.data(), job.folder, overwrite)
        return train_and_index(job)

    return train_and_index(job, overwrite)


def show(dataset: str, first: str, second: str) -> None:
    """Draw matches between two cases of a dataset, by its finished matcher and index."""
    volumes = existing_volumes(dataset_name(dataset))
    show_matches(volumes.parent / ANATOMY, volumes, first, second)


def dry_run(config: EmbedConfig, device: str | None, overwrite: bool) -> None:
    """Print what `embed` would do. Nothing is started, no earlier training is touched."""
    chosen_device = choose_device(device, config.preset, only_asked=True)
    name = dataset_name(config.dataset)
    config = dataclasses.replace(config, dataset=name)

    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    folder = preprocessed / ANATOMY

    if is_preprocessed(preprocessed):
        size = CROPS[config.preset].size
        _, volumes = preprocessed_volumes(name, 1, config.preset, size)
        cases = case_names(volumes)
    else:
        cases = sorted(open_raw_dataset(name).cases)
        print(f"{name}: {len(cases)} cases, not (completely) preprocessed: that comes first")

    step = 0
    if (folder / FINAL).is_file() and not overwrite:
        print(f"the matcher is trained: {folder / FINAL}. Only the index would be completed")
        step = config.iterations
    elif (folder / LATEST).is_file() and not overwrite:
        step = load_checkpoint(folder / LATEST)["step"]

    training, held_out = split_cases(cases, config.validation_share, config.seed)
    print_plan(config, chosen_device, folder, step, len(training), len(held_out))


def read_released(path: Path, config: EmbedConfig) -> dict[str, Tensor]:
    """The weights in a checkpoint of SAM or UAE.

    Raises:
        UserError: They do not fit, or the matcher of these settings is another network.
    """
    if config.network != PRESETS["paper"].network:
        raise UserError("-released: these weights need the network of -preset paper")
    return from_released(path)


def take_released(
    weights: dict[str, Tensor], config: EmbedConfig, data: dict, folder: Path, overwrite: bool
) -> None:
    """Make released weights the finished training of a dataset.

    Args:
        weights: Of read_released.
        config: Settings that the matcher will be used with.
        data: Description of the data, for the checkpoint.
        folder: Of the matcher and its index.
        overwrite: Remove an earlier training and index.

    Raises:
        UserError: There is a training already.
    """
    folder.mkdir(exist_ok=True)

    with locked(folder / LOCK):
        if any(folder.glob("checkpoint_*.pth")) and not overwrite:
            raise UserError(f"{folder} already holds a training. Remove it with --overwrite")

        remove_training(folder)
        checkpoint = {
            "network_weights": weights,
            "step": 0,
            "config": config.as_dict(),
            "data": data,
        }
        save_checkpoint(folder / FINAL, checkpoint)


def train_and_index(job: EmbedJob, overwrite: bool = False) -> int:
    """Train, or resume an interrupted training, then index the volumes that are not indexed.

    Args:
        job: What to train on.
        overwrite: Remove an earlier training and index.

    Returns:
        0, or the signal that stopped the training, which is saved.

    Raises:
        UserError: The folder holds a training with other settings, or a volume cannot be read.
    """
    folder = job.folder
    folder.mkdir(exist_ok=True)

    with locked(folder / LOCK):
        if overwrite:
            remove_training(folder)
        job = dataclasses.replace(job, config=with_precision(job))

        if (folder / FINAL).is_file():
            trained = load_checkpoint(folder / FINAL)
            check_same(job.config, trained, folder)
            check_spacing(trained, job.plans, folder, job.config.preset)
            print(f"the matcher is trained: {folder / FINAL}", flush=True)
        else:
            try:
                stopped_by = train(make_run(job))
            except NonFiniteLoss as error:
                raise UserError(f"{error}. The last checkpoint is kept: {folder}") from error
            if stopped_by:
                return stopped_by

        index_volumes(job.volumes, folder, job.device)
    return 0


def with_precision(job: EmbedJob) -> EmbedConfig:
    """The config of a job, in which auto is what the training there has, else fp32 or bf16."""
    config = job.config
    if config.precision != "auto":
        return config

    for name in (FINAL, LATEST):
        if (job.folder / name).is_file():
            trained = embed_config_from_dict(load_checkpoint(job.folder / name)["config"])
            return dataclasses.replace(config, precision=trained.precision)

    # Whether bf16 pays on CPUs that have it was not measured for the matcher.
    precision = settled_precision(config.precision, job.device, pays_on_cpu=False)
    return dataclasses.replace(config, precision=precision)


def ensure_index(
    dataset: str, preset: str, plans: dict, volumes: Path, device: torch.device, workers: int
) -> int:
    """Make sure that all volumes are indexed, for a command that needs the index.

    A trained matcher is used whatever its settings; where there is none, the preset is trained.

    Returns:
        0, or the signal that stopped the training, which is saved.
    """
    folder = volumes.parent / ANATOMY

    if not (folder / FINAL).is_file():
        print(
            f"{dataset} has no trained matcher in {folder}: training it first (alice-embed)",
            flush=True,
        )
        config = embed_config(dataset, preset)
        return train_and_index(EmbedJob(config, plans, volumes, device, workers))

    # Runs of several encoders may start at once: to index what is new takes each of them moments.
    with locked_in_turn(folder / LOCK):
        trained = load_checkpoint(folder / FINAL)
        check_spacing(trained, plans, folder, preset)
        its_preset = trained["config"]["preset"]
        if its_preset != preset:
            print(f"the matcher is of preset {its_preset}, this run of {preset}", flush=True)
        index_volumes(volumes, folder, device, read_all=False)
    return 0


def check_spacing(trained: dict, plans: dict, folder: Path, preset: str) -> None:
    """Raise UserError where a matcher was trained on volumes of another spacing.

    Args:
        trained: Its checkpoint.
        plans: Of the volumes as they are now.
        folder: Of the matcher.
        preset: For the command that repeats its training.
    """
    before = tuple(trained["data"]["spacing"])
    now = spacing_of(plans)
    if before != now:
        name = plans["dataset_name"]
        raise UserError(
            f"the matcher in {folder} was trained on volumes of {millimetres(before)} (preset "
            f"{trained['config']['preset']}), and now they have {millimetres(now)}. Train it "
            f"again: alice-embed -d {name} -preset {preset} --overwrite"
        )


def remove_training(folder: Path) -> None:
    """Remove a training and its index.

    The training goes first: an interruption leaves nothing that looks complete.
    """
    for pattern in (
        "checkpoint_*.pth",
        "*.json",
        "*.npy",
        "*.npz",
        "events.*",
        "*.png",
        "*.fcsv",
        "*.txt",
        "*.jsonl",
    ):
        for path in folder.glob(pattern):
            path.unlink()


def make_run(job: EmbedJob) -> EmbedRun:
    """A new training, or the interrupted one in the job's folder."""
    config = job.config
    folder = job.folder
    training, held_out = split_cases(case_names(job.volumes), config.validation_share, config.seed)
    data = job.data()

    if (folder / LATEST).is_file():
        check_same(config, load_checkpoint(folder / LATEST), folder, data)
        state = load_state(folder / LATEST, config, job.device)
        print(f"resuming from step {state.step} of {folder / LATEST}", flush=True)
    else:
        state = build_state(config, job.device)

    write_json_atomically(folder / EMBED_CONFIG, config.as_dict())
    precision = precision_name(job.device, autocast(job.device, config.precision))
    warn_of_emulation(job.device, precision)
    print(
        f"matcher {config.preset} on {job.device} in {precision}: {len(training)} training and "
        f"{len(held_out)} held-out volumes of {millimetres(data['spacing'])}, "
        f"{millions(state.network)} parameters, results in {folder}",
        flush=True,
    )

    return EmbedRun(
        config=config,
        state=state,
        volumes=job.volumes,
        folder=folder,
        data=data,
        training=training,
        held_out=held_out,
        workers=0 if job.device.type == "cpu" else job.workers,
    )


def check_same(
    config: EmbedConfig, checkpoint: dict, folder: Path, data: dict | None = None
) -> None:
    """Raise UserError where a training has other settings or, where data is given, other data."""
    saved = embed_config_from_dict(checkpoint["config"]).as_dict()
    changed = differences(saved, config.as_dict(), "in this command", "in the saved training")
    if data:
        changed += differences(checkpoint["data"], data, "in the data now", "in the saved training")

    if changed:
        raise UserError(
            f"Cannot use the training in {folder}: {'; '.join(changed)}. Use the original "
            "settings, or train and index again with alice-embed --overwrite"
        )
