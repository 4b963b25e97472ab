"""alice-embed: learn the anatomical embedding of a dataset, and index every volume with it."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from alice_nnunet.checkpoint import load_checkpoint, save_checkpoint
from alice_nnunet.data.volumes import case_names, case_properties, open_volume
from alice_nnunet.datasets.raw_dataset import dataset_name, nnunet_folder, open_raw_dataset
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.files import file_sha256, locked, write_json_atomically
from alice_nnunet.matcher.embed import embed_volume
from alice_nnunet.matcher.index import is_whole, save_embedding
from alice_nnunet.matcher.learned import EmbeddingMatcher
from alice_nnunet.matcher.released import from_released
from alice_nnunet.matcher.weights import load_network
from alice_nnunet.model.presets import CROPS
from alice_nnunet.names import ANATOMY, FINAL, LATEST
from alice_nnunet.options import add_processes_option
from alice_nnunet.pictures import matches_figure, pair_figure, save_figure
from alice_nnunet.pretrain.datasets.preprocessed import (
    choose_device,
    is_preprocessed,
    preprocessed_volumes,
    split,
)
from alice_nnunet.pretrain.datasets.pretrain_plans import data_description
from alice_nnunet.pretrain.embedding.config import (
    EmbedConfig,
    embed_config,
    embed_config_from_dict,
)
from alice_nnunet.pretrain.embedding.dry_run import print_plan
from alice_nnunet.pretrain.embedding.run import EmbedRun, train
from alice_nnunet.pretrain.embedding.state import build_state, load_state
from alice_nnunet.pretrain.runtime.steps import NonFiniteLoss
from alice_nnunet.pretrain.runtime.stop import exit_code

SHOWN_POINTS = 6


def parser() -> CommandParser:
    p = CommandParser(
        "alice-embed",
        description="Learn where in a body a point lies, from volumes without labels, and index "
        "every volume of a dataset: alice-pretrain finds the same body part in two people with it.",
    )
    p.add_argument(
        "-d",
        required=True,
        metavar="ID",
        help="dataset ID or name; its volumes are preprocessed if they are not yet",
    )
    p.add_argument("-preset", default="paper", choices=sorted(CROPS), help="default: paper")
    p.add_argument("-device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    p.add_argument(
        "-config",
        type=Path,
        metavar="FILE",
        help="JSON file of settings, such as another training's config.json",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="assignments",
        help="change one setting, e.g. --set iterations=2000; may be repeated",
    )
    add_processes_option(p, "that preprocess and load")
    p.add_argument(
        "-released",
        type=Path,
        metavar="FILE",
        help="use the weights that SAM's authors released instead of learning (preset paper)",
    )
    p.add_argument(
        "--overwrite",
        action="store_true",
        help="throw the training and the index away and do both again",
    )
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan of the training, its memory and its time, and do nothing else",
    )
    p.add_argument(
        "--show",
        nargs=2,
        metavar=("A", "B"),
        help="draw matches between two cases of the finished index, and do nothing else",
    )
    return p


@command("alice-embed")
def main(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    device = choose_device(arguments.device)
    name = dataset_name(arguments.d)
    if arguments.dry_run:
        dry_run(arguments, name, device)
        return
    spacing, patch = (
        CROPS[arguments.preset].spacing,
        CROPS[arguments.preset].size,
    )
    plans, volumes = preprocessed_volumes(name, arguments.np, spacing, patch)
    folder = volumes.parent / ANATOMY
    if arguments.show:
        show(folder, volumes, *arguments.show)
        return
    config = embed_config(name, arguments.preset, arguments.assignments, arguments.config)
    if arguments.released:
        put_released(
            arguments.released,
            config,
            data_description(plans, case_names(volumes)),
            folder,
            arguments.overwrite,
        )
    embed_dataset(
        config,
        plans,
        volumes,
        folder,
        device,
        arguments.np,
        arguments.overwrite and not arguments.released,
    )


def dry_run(arguments, name: str, device: torch.device) -> None:
    """Print what the command would do; nothing is started, no earlier training touched."""
    config = embed_config(name, arguments.preset, arguments.assignments, arguments.config)
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    folder = preprocessed / ANATOMY

    if is_preprocessed(preprocessed):
        size = CROPS[arguments.preset]
        volumes = preprocessed_volumes(name, arguments.np, size.spacing, size.size)[1]
        cases = case_names(volumes)
    else:
        cases = sorted(open_raw_dataset(name).cases)
        print(f"{name}: {len(cases)} cases, not (completely) preprocessed yet: that comes first")

    step = 0
    if (folder / FINAL).is_file() and not arguments.overwrite:
        print(f"the embedding is trained: {folder / FINAL}; only the index would be completed")
        step = config.iterations
    elif (folder / LATEST).is_file() and not arguments.overwrite:
        step = load_checkpoint(folder / LATEST)["step"]

    training, held_out = split(cases, config.validation_share, config.seed)
    print_plan(config, device, folder, step, len(training), len(held_out))


def put_released(
    path: Path, config: EmbedConfig, data: dict, folder: Path, overwrite: bool
) -> None:
    """Make the weights in path the finished training of folder. Raises UserError where one is there already, or they do not fit."""
    if config.network != embed_config(config.dataset, "paper", []).network:
        raise UserError("-released: these weights are for the network of -preset paper")
    weights = from_released(path)
    folder.mkdir(exist_ok=True)
    with locked(folder / "lock"):
        if any(folder.glob("checkpoint_*.pth")) and not overwrite:
            raise UserError(f"{folder} holds a training already; --overwrite throws it away")
        remove(folder)
        save_checkpoint(
            folder / FINAL,
            {"network_weights": weights, "step": 0, "config": config.as_dict(), "data": data},
        )


def embed_dataset(
    config: EmbedConfig,
    plans: dict,
    volumes: Path,
    folder: Path,
    device: torch.device,
    workers: int,
    overwrite: bool = False,
) -> None:
    """Train where there is no finished training, go on where one was interrupted, then index what is not indexed.

    volumes: preprocessed cases; folder: of the embedding. Raises UserError where folder holds a training with other
    settings, or for what the user can mend in the data.
    """
    folder.mkdir(exist_ok=True)
    with locked(folder / "lock"):
        if overwrite:
            remove(folder)
        if not (folder / FINAL).is_file():
            try:
                stopped_by = train(make_run(config, plans, volumes, folder, device, workers))
            except NonFiniteLoss as error:
                raise UserError(f"{error}. The last checkpoint is intact: {folder}") from error
            if stopped_by:
                raise SystemExit(exit_code(stopped_by))
        else:
            check_same(config, load_checkpoint(folder / FINAL), folder)
            print(f"the embedding is trained: {folder / FINAL}", flush=True)
        index(volumes, folder, device)


def ensure_index(
    name: str, preset: str, plans: dict, volumes: Path, device: torch.device, workers: int
) -> None:
    """For a command that needs the index: use the embedding that is there, whatever its settings, or learn the preset's."""
    folder = volumes.parent / ANATOMY
    if not (folder / FINAL).is_file():
        print(
            f"{name} has no finished anatomical embedding in {folder}: doing that first (alice-embed)",
            flush=True,
        )
        embed_dataset(embed_config(name, preset, []), plans, volumes, folder, device, workers)
        return
    with locked(folder / "lock"):
        index(volumes, folder, device, read_all=False)


def remove(folder: Path) -> None:
    """Remove a training and its index, the training first, so that an interruption leaves nothing that looks whole."""
    for pattern in ("checkpoint_*.pth", "*.json", "*.npy", "events.*", "*.png", "*.txt"):
        for path in folder.glob(pattern):
            path.unlink()


def make_run(
    config: EmbedConfig,
    plans: dict,
    volumes: Path,
    folder: Path,
    device: torch.device,
    workers: int,
) -> EmbedRun:
    """A new training, or the interrupted one in folder."""
    cases = case_names(volumes)
    training, held_out = split(cases, config.validation_share, config.seed)
    data = data_description(plans, cases)
    if (folder / LATEST).is_file():
        check_same(config, load_checkpoint(folder / LATEST), folder, data)
        state = load_state(folder / LATEST, config, device)
        print(f"going on from step {state.step} of {folder / LATEST}", flush=True)
    else:
        state = build_state(config, device)
    write_json_atomically(folder / "config.json", config.as_dict())
    print(
        f"embedding {config.preset} on {device}: {len(training)} training and {len(held_out)} held-out volumes, "
        f"{sum(p.numel() for p in state.network.parameters()) / 1e6:.1f} M parameters, results in {folder}",
        flush=True,
    )
    return EmbedRun(
        config,
        state,
        volumes,
        folder,
        data,
        training,
        held_out,
        0 if device.type == "cpu" else workers,
    )


def check_same(
    config: EmbedConfig, checkpoint: dict, folder: Path, data: dict | None = None
) -> None:
    """Raise UserError where a checkpoint was made with other settings, or, where data is given, from other volumes."""
    saved, wanted = embed_config_from_dict(checkpoint["config"]).as_dict(), config.as_dict()
    changed = [
        f"{n} is {saved[n]} there and {wanted[n]} now" for n in wanted if saved[n] != wanted[n]
    ]
    changed += [
        f"the data's {n} is {checkpoint['data'][n]} there and {data[n]} now"
        for n in data or {}
        if checkpoint["data"][n] != data[n]
    ]
    if changed:
        raise UserError(
            f"{folder} holds a training with other settings: {'; '.join(changed)}. Give the same ones, or do it all "
            f"again with alice-embed --overwrite"
        )


def index(volumes: Path, folder: Path, device: torch.device, read_all: bool = True) -> None:
    """Embed every volume that has no embedding by these weights, or a damaged one.

    read_all: find damaged ones by their checksum. Raises UserError if a volume cannot be read, at the end.
    """
    (network, config), weights, failed, made = (
        load_network(folder),
        file_sha256(folder / FINAL),
        {},
        0,
    )
    network.to(device)
    cases = case_names(volumes)
    for case in tqdm(cases, desc="index", unit="volume", disable=None):
        try:
            made_from = {
                "weights": weights,
                "volume": case_properties(volumes, case)["alice"]["crc32"],
            }
            if not is_whole(folder, case, made_from, read_all):
                save_embedding(
                    folder,
                    case,
                    embed_volume(
                        network, open_volume(volumes, case), config["voxel"], config["step"], device
                    ),
                    made_from,
                )
                made += 1
        except UserError as error:
            failed[case] = str(error)
    print(
        f"{len(cases) - len(failed)} of {len(cases)} volumes are indexed, {made} of them now, in {folder}",
        flush=True,
    )
    if failed:
        raise UserError(
            f"{len(failed)} volumes were not indexed: "
            + "; ".join(f"{case}: {reason}" for case, reason in failed.items())
        )


def show(folder: Path, volumes: Path, first: str, second: str) -> None:
    """Draw random body points of one case and their matches in another, and the two crops around the best match."""
    for case in (first, second):
        if case not in case_names(volumes):
            raise UserError(
                f"--show: there is no case {case} in {volumes}; there are {', '.join(case_names(volumes)[:10])} ..."
            )
    query, key, rng = (
        open_volume(volumes, first),
        open_volume(volumes, second),
        np.random.default_rng(0),
    )
    points = sorted((query.body.random_point(rng) for _ in range(SHOWN_POINTS)), reverse=True)
    matcher = EmbeddingMatcher(folder)
    matches = [matcher(point, query, key) for point in points]
    name = f"{first}_{second}"
    save_figure(
        matches_figure(
            query.image[:1][0],
            key.image[:1][0],
            np.array(points),
            np.array([m.point for m in matches]),
            [m.score for m in matches],
            query.spacing,
            (first, second),
        ),
        folder / f"matches_{name}.png",
    )
    point, match = max(zip(points, matches), key=lambda pair: pair[1].score)
    size = tuple(round(n / s) for n, s in zip((96.0, 192.0, 192.0), query.spacing))  # mm
    save_figure(
        pair_figure(
            query.read_crop(point, size),
            key.read_crop(match.point, size),
            query.spacing,
            (first, f"{second}, score {match.score:.2f}"),
        ),
        folder / f"pair_{name}.png",
    )
    for point, match in zip(points, matches):
        print(f"{first} voxel {point} -> {second} voxel {match.point}, score {match.score:.2f}")
    print(f"drawn: {folder / f'matches_{name}.png'}, {folder / f'pair_{name}.png'}")
