"""The work of alice-pretrain: from what the user asks for to a run on preprocessed volumes."""

import dataclasses
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.data.pairs import NoMatch
from alice_nnunet.data.volumes import case_names
from alice_nnunet.datasets.raw_dataset import dataset_name, open_raw_dataset
from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256, require_space
from alice_nnunet.finetuning.network import check_network
from alice_nnunet.matcher.index import open_embedding, stem_of
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.presets import PRESETS as MODEL_PRESETS
from alice_nnunet.names import ANATOMY, COVERAGE_PICTURE, FINAL, PARTNERS, PRETRAIN_PLANS
from alice_nnunet.pretrain.datasets.preprocessed import (
    is_preprocessed,
    preprocessed_volumes,
    split_cases,
)
from alice_nnunet.pretrain.datasets.pretrain_plans import data_description, spacing_of
from alice_nnunet.pretrain.embedding.job import check_spacing, ensure_index
from alice_nnunet.pretrain.runtime.device import (
    autocast,
    choose_device,
    settled_precision,
    warn_of_emulation,
)
from alice_nnunet.pretrain.runtime.distributed import Team, launch, launched, team
from alice_nnunet.pretrain.runtime.estimate import millions, precision_name, tensor_bytes
from alice_nnunet.pretrain.runtime.log import check_loggers
from alice_nnunet.pretrain.runtime.steps import NonFiniteLoss
from alice_nnunet.pretrain.runtime.stop import exit_code
from alice_nnunet.pretrain.training.adaptation import adaptation_plan
from alice_nnunet.pretrain.training.config import (
    FASTER_IN_BF16,
    PretrainConfig,
    Settings,
    make_config,
    rate,
)
from alice_nnunet.pretrain.training.dry_run import draw_first_pair, print_plan
from alice_nnunet.pretrain.training.folders import (
    RunFolder,
    chosen_run,
    own_folder,
    planned_folder,
    results_of,
)
from alice_nnunet.pretrain.training.organ_probe import labeled_cases, read_people
from alice_nnunet.pretrain.training.resume import (
    check_partners,
    prepare_folder,
    resumed_config,
)
from alice_nnunet.pretrain.training.run import Run, make_training_pairs, train, with_min_score
from alice_nnunet.pretrain.training.state import build_state, load_state
from alice_nnunet.ranks import rank, world
from alice_nnunet.text import millimetres


@dataclass(frozen=True)
class Request:
    """What the user asks alice-pretrain for.

    Attributes:
        dataset: ID or name.
        settings: Of the run.
        device: cpu, cuda, or None for cuda where there is one.
        num_gpus: Processes that train together on this machine, one for each GPU.
        processes: That preprocess and load.
        resume: Go on with a run that is there.
        name: Of the run, None for a number.
    """

    dataset: str
    settings: Settings
    device: str | None
    num_gpus: int
    processes: int
    resume: bool
    name: str | None = None


@dataclass(frozen=True)
class Job:
    """A request on preprocessed volumes.

    Attributes:
        config: Of the run.
        run: Its folder, and the checkpoint to go on from.
        plans: Of the preprocessed volumes.
        data: Description of the data, for the checkpoint.
        volumes: Folder of the preprocessed cases.
        training: Cases to learn from.
        held_out: Cases to validate on.
    """

    config: PretrainConfig
    run: RunFolder
    plans: dict
    data: dict
    volumes: Path
    training: list[str]
    held_out: list[str]

    @property
    def matcher_folder(self) -> Path:
        """Where alice-embed leaves the matcher and the index."""
        return self.volumes.parent / ANATOMY


def run_request(request: Request, arguments: list[str]) -> int:
    """Pretrain, in this process or, with several GPUs, in one for each.

    Args:
        request: What the user asks for.
        arguments: Of the command, to start the other processes with.

    Returns:
        The exit code: 0 at the end of the run, another where it was stopped.
    """
    # What is wrong is said before preprocessing, and not once in every process.
    check_loggers()
    device = choose_device(request.device, request.settings.preset)
    check_request(request)

    if request.num_gpus > 1 and not launched():
        return launch(request.num_gpus, arguments, device)

    with team(device) as processes:
        stopped_by = pretrain(request, processes)
        # Wait for process 0 to have saved: where one process ends, the others are ended.
        processes.wait()
    return exit_code(stopped_by) if stopped_by else 0


def check_request(request: Request) -> None:
    """Check what can be known of a run before a scan is read.

    Raises:
        UserError: It would end later, or what it makes could not be used.
    """
    name = dataset_name(request.dataset)
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    results = results_of(name)

    channels = 1
    if not is_preprocessed(preprocessed):
        channels = len(open_raw_dataset(name).dataset_json["channel_names"])
    config = make_config(name, request.settings, channels)
    require_space(results, checkpoint_bytes_at_least(config), "two checkpoints")

    if not (request.resume and chosen_run(results, request.settings.run_name, request.name)):
        check_fine_tuning(config)
    if config.probe_labels:
        folder = Path(config.probe_labels)
        if not (folder / "labels").is_dir():
            labeled_cases(folder, channels)  # says what it needs
    if config.matcher == "embedding":
        check_matcher(preprocessed, config.preset)


def check_fine_tuning(config: PretrainConfig) -> None:
    """Raise UserError where no segmentation network can be built around the encoder."""
    network_arguments = MODEL_PRESETS[config.encoder][config.preset].network
    try:
        check_network(
            config.encoder,
            config.encoder_arguments,
            network_arguments,
            config.encoder_arguments["in_channels"],
        )
    except UserError as error:
        raise UserError(f"this encoder could not be fine-tuned: {error}") from None


def check_matcher(preprocessed: Path, preset: str) -> None:
    """Raise UserError where a matcher is there that was trained on volumes of another spacing.

    Args:
        preprocessed: Folder of the dataset, with plans or not yet.
        preset: Of the run.
    """
    plans = preprocessed / f"{PRETRAIN_PLANS}.json"
    matcher = preprocessed / ANATOMY / FINAL
    if plans.is_file() and matcher.is_file():
        check_spacing(
            load_checkpoint(matcher), json.loads(plans.read_text()), matcher.parent, preset
        )


def checkpoint_bytes_at_least(config: PretrainConfig) -> int:
    """Of two checkpoints, the old one and the one that replaces it.

    Online and target encoder and AdamW's two moments are counted, the decoder and the heads not.
    """
    with torch.device("meta"):  # takes no memory
        encoder = build_encoder(config.encoder, config.encoder_arguments)
    return 2 * 4 * tensor_bytes(encoder.parameters())


def pretrain(request: Request, processes: Team) -> int:
    """Pretrain in a folder that no other process works in.

    Returns:
        0, or the signal that stopped the run, which is saved.
    """
    results = results_of(dataset_name(request.dataset))
    encoder = request.settings.run_name

    with ExitStack() as stack:
        run = None
        if rank() == 0:
            own = own_folder(results, encoder, request.name, request.resume)
            run = stack.enter_context(own)
        return pretrain_in(processes.share(run), request, processes)


def pretrain_in(run: RunFolder, request: Request, processes: Team) -> int:
    """Preprocess and train the matcher where need be, then pretrain from start to end.

    Args:
        run: The folder of the run, locked by process 0.
        request: What the user asks for.
        processes: That train together.

    Returns:
        0, or the signal that stopped the run, which is saved.
    """
    plans, volumes = processes.first(lambda: find_volumes(request))
    job = make_job(request, plans, volumes, run, world(), processes.device)

    if job.config.matcher == "embedding":
        if rank() == 0:
            prepare_matcher(job, request, processes.device)
        processes.wait()
        job.data["embedding_sha256"] = file_sha256(job.matcher_folder / FINAL)
        if job.config.draw == "partners":
            note_partners(job)

    job = dataclasses.replace(job, config=with_min_score(job.config, job.volumes))
    job = with_vectors_of_index(job, request.settings.given)
    if rank() == 0:
        check_pairs(job)

    try:
        return train(make_run(job, request, processes.device))
    except NonFiniteLoss as error:
        raise UserError(f"{error}. The last checkpoint is kept: {job.run.path}") from error
    except OSError as error:
        raise UserError(
            f"{error.filename or job.run.path}: {error.strerror or error}. The last checkpoint is "
            f"kept: {job.run.path}. Resume with --c when this is repaired"
        ) from error


def dry_run(request: Request) -> None:
    """Print what the run would do and take, and draw its first pair.

    Nothing is started, and no earlier run is touched.
    """
    if launched():
        raise UserError(
            "--dry-run is for one process: omit torchrun and give the number of GPUs with -num_gpus"
        )

    device = choose_device(request.device, request.settings.preset, only_asked=True)
    check_request(request)
    name = dataset_name(request.dataset)
    run = planned_folder(results_of(name), request.settings.run_name, request.name, request.resume)

    if not is_preprocessed(nnunet_folder("nnUNet_preprocessed") / name):
        raw = open_raw_dataset(name)
        config = make_config(name, request.settings, len(raw.dataset_json["channel_names"]))
        config = with_precision(config, device)
        print(
            f"{name}: {len(raw.cases)} cases, not (completely) preprocessed. That comes first; "
            "until then there is no pair to draw"
        )
        print_plan(config, device, request.num_gpus, run.path, 0, len(raw.cases))
        return

    plans, volumes = find_volumes(request)
    job = make_job(request, plans, volumes, run, request.num_gpus, device)
    config = job.config
    step = load_checkpoint(job.run.checkpoint)["step"] if job.run.checkpoint else 0
    print_plan(
        config,
        device,
        request.num_gpus,
        job.run.path,
        step,
        len(job.training),
        len(job.held_out),
    )

    if config.matcher == "embedding" and not is_indexed(job):
        print(
            "The matcher is not trained, or not every volume is indexed. That comes first "
            "(alice-embed); the pair drawn here is matched by the body's box"
        )
        method = config.method.without_vectors()
        config = dataclasses.replace(config, matcher="body", method=method)
    config = with_min_score(config, volumes)

    first_pair = step * config.batch_size * request.num_gpus
    draw_first_pair(
        config, volumes, job.training, tuple(job.data["spacing"]), first_pair, job.run.path
    )


def find_volumes(request: Request) -> tuple[dict, Path]:
    """Plans and folder of the preprocessed volumes; preprocesses where that is not done."""
    settings = request.settings
    name = dataset_name(request.dataset)
    crop_size = settings.encoder["crop_size"]
    return preprocessed_volumes(name, request.processes, settings.preset, crop_size)


def with_precision(config: PretrainConfig, device: torch.device) -> PretrainConfig:
    """The config of a new run, in which precision is fp32 or bf16."""
    pays_on_cpu = config.encoder in FASTER_IN_BF16
    precision = settled_precision(config.precision, device, pays_on_cpu)
    return dataclasses.replace(config, precision=precision)


def make_job(
    request: Request,
    plans: dict,
    volumes: Path,
    run: RunFolder,
    processes: int,
    device: torch.device,
) -> Job:
    """Combine a request with preprocessed volumes and, with --c, the run that is there.

    Args:
        request: What the user asks for.
        plans: Of the preprocessed volumes.
        volumes: Folder of the preprocessed cases.
        run: Its folder, and the checkpoint to go on from.
        processes: That train together.
        device: Of the run.

    Raises:
        UserError: A setting is out of range, the method cannot learn from these volumes, or the
            run that is there cannot be resumed.
    """
    name = dataset_name(request.dataset)
    cases = case_names(volumes)
    data = data_description(plans, cases)
    windowed = tuple(i for i, channel in enumerate(data["channels"]) if channel["window"])
    config = make_config(name, request.settings, len(data["channels"]), windowed)
    refusal = config.method.spacing_refusal(spacing_of(plans))
    if refusal:
        raise UserError(f"-method {config.method_name} cannot learn from these volumes: {refusal}")

    if run.checkpoint:
        matcher = volumes.parent / ANATOMY / FINAL
        config = resumed_config(
            run.checkpoint, config, request.settings.given, data, matcher, processes
        )
    else:
        config = with_precision(config, device)

    if config.probe_labels:
        labeled_cases(Path(config.probe_labels), len(data["channels"]))  # complete, before any step

    training, held_out = split_cases(cases, config.validation_share, config.seed)
    return Job(
        config=config,
        run=run,
        plans=plans,
        data=data,
        volumes=volumes,
        training=training,
        held_out=held_out,
    )


def prepare_matcher(job: Job, request: Request, device: torch.device) -> None:
    """Train the matcher and index all volumes, where that is not done.

    Raises:
        SystemExit: A signal stopped the training of the matcher, which is saved.
    """
    stopped_by = ensure_index(
        job.config.dataset,
        request.settings.preset,
        job.plans,
        job.volumes,
        device,
        request.processes,
    )
    if stopped_by:
        raise SystemExit(exit_code(stopped_by))


def note_partners(job: Job) -> None:
    """Put the checksum of the table that pairs are drawn from into the description of the data.

    Raises:
        UserError: The run that is there was started with another table.
    """
    table = job.matcher_folder / PARTNERS
    if job.run.checkpoint:
        check_partners(job.run.checkpoint, table)
    job.data["partners_sha256"] = file_sha256(table)


def with_vectors_of_index(job: Job, given: dict) -> Job:
    """The job with as many anatomy_channels as the matcher's vectors have.

    Args:
        job: Of matcher embedding if tokens name its vectors.
        given: Names and values of the settings that the user gave.

    Raises:
        UserError: The user gave another number, or the run that is there has one.
    """
    method = job.config.method
    if method.vector_channels is None:
        return job

    found = open_embedding(job.matcher_folder, job.training[0]).blocks.shape[2]
    if found == method.vector_channels:
        return job
    if job.run.checkpoint or "anatomy_channels" in given:
        raise UserError(
            f"weight_an: the matcher's vectors in {job.matcher_folder} have {found} channels, "
            f"anatomy_channels is {method.vector_channels}. Use --set anatomy_channels={found}"
        )

    config = dataclasses.replace(job.config, method=method.with_vector_channels(found))
    return dataclasses.replace(job, config=config)


def check_pairs(job: Job) -> None:
    """Draw the first pairs, before any step.

    Raises:
        UserError: (Nearly) nothing matches.
    """
    pairs = make_training_pairs(job.config, job.volumes, job.training)

    try:
        pairs.check()
    except NoMatch as error:
        picture = job.matcher_folder / COVERAGE_PICTURE
        shown = f". What each scan shows: {picture}" if job.config.matcher == "embedding" else ""
        raise UserError(f"{error}{shown}") from None


def is_indexed(job: Job) -> bool:
    """Whether the files of a trained matcher and of an index of every volume are there."""
    files = [FINAL, PARTNERS, *(f"{stem_of(case)}.npy" for case in (*job.training, *job.held_out))]
    return all((job.matcher_folder / file).is_file() for file in files)


def make_run(job: Job, request: Request, device: torch.device) -> Run:
    """A new run in an empty folder, or the one in the job's checkpoint."""
    config = job.config

    if job.run.checkpoint:
        state = load_state(job.run.checkpoint, config, device)
    else:
        state = build_state(config, device)

    if rank() == 0:
        prepare_folder(job.run, config, state.step, request.resume)
        several = (
            f", {world()} processes with {config.batch_size} pairs each" if world() > 1 else ""
        )
        precision = precision_name(device, autocast(device, config.precision))
        warn_of_emulation(device, precision)
        print(
            f"{config.encoder} {config.preset} on {device} in {precision}{several}: "
            f"{len(job.training)} training and {len(job.held_out)} held-out volumes of "
            f"{millimetres(job.data['spacing'])}, {millions(state.model.encoder)} encoder "
            f"parameters, {rate(config, world())}, results in {job.run.path}",
            flush=True,
        )

    workers = config.workers
    if workers is None:
        workers = 0 if device.type == "cpu" else request.processes

    people = []
    if config.probe_labels and config.probe_every and rank() == 0:
        people = read_people(
            Path(config.probe_labels), job.plans, config.encoder_arguments["in_channels"]
        )

    return Run(
        config=config,
        state=state,
        people=people,
        volumes=job.volumes,
        folder=job.run.path,
        spacing=tuple(job.data["spacing"]),
        data=job.data,
        adaptation_plan=adaptation_plan(job.plans, config),
        training=job.training,
        held_out=job.held_out,
        workers=workers,
    )
