"""Features of all scans of a folder, with pictures and the most similar scans."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alice_nnunet.checks.findings import Decisions
from alice_nnunet.errors import UserError
from alice_nnunet.features.encoder import build_pretrained, preparation_of
from alice_nnunet.features.folder import find_scans
from alice_nnunet.features.maps import content_of_map, scan_features
from alice_nnunet.features.neighbours import (
    nearest_scans,
    neighbours_page,
    write_neighbours_csv,
)
from alice_nnunet.features.pictures import (
    ShownScan,
    fit_colours,
    pca_figure,
    sampled_tokens,
    shown_scan,
)
from alice_nnunet.features.scans import PreparedScan
from alice_nnunet.features.storage import (
    as_arrays,
    last_map,
    read_arrays,
    stored,
    write_arrays,
)
from alice_nnunet.files import locked, replacing, write_json_atomically
from alice_nnunet.finetuning.pretrained import PretrainedEncoder, load_pretrained
from alice_nnunet.geometry import triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.pictures import save_figure
from alice_nnunet.settings.device import chosen_device
from alice_nnunet.workers import with_progress

REPORT = "alice_features.json"


@dataclass(frozen=True)
class Request:
    """What alice-features is asked for.

    Attributes:
        weights: checkpoint, folder or repository.
        scans: folder or file.
        output: folder.
        file_format: npz or safetensors.
        stages: all, last or none: the maps that are kept.
        pca: draw the last stage.
        nearest: number of similar scans to list, 0 for none.
        device: cuda, cpu or None.
        decisions: of the user, where a file leaves a choice.
    """

    weights: str
    scans: Path
    output: Path
    file_format: str
    stages: str
    pca: bool
    nearest: int
    device: str | None
    decisions: Decisions


@dataclass(frozen=True)
class Done:
    """What is kept in memory of a scan whose features are written.

    Attributes:
        vector: (channels,).
        shown: its middle slices.
        step: voxels (z, y, x) of a position of the last stage.
        tokens: (tokens, channels), some of the last stage, for the colours.
        warnings: what is remarkable in its files.
        was_there: whether an earlier run encoded it.
    """

    vector: np.ndarray
    shown: ShownScan
    step: tuple[int, int, int]
    tokens: np.ndarray
    warnings: tuple[str, ...]
    was_there: bool


def extract_features(request: Request) -> None:
    """Write the features of all scans, and what else is asked for. Bad files are listed.

    Raises:
        UserError: the weights cannot be used, no scan can, or the folder has other features.
    """
    device = chosen_device(request.device)
    pretrained = load_pretrained(request.weights)
    preparation = preparation_of(pretrained, request.decisions)
    scans, failed = find_scans(request.scans, len(preparation.windows))
    check_output(request.output, pretrained)
    encoder = build_pretrained(pretrained).eval().to(device)

    def results() -> Iterator[tuple[str, Done | str]]:
        for number, (name, files) in enumerate(scans.items()):
            try:
                scan = preparation.scan(*files)
            except ValueError as error:
                yield name, str(error)
                continue

            path = file_of(request, name)
            arrays = stored(path, files, request.stages, pretrained.sha256)
            was_there = arrays is not None
            if arrays is None:
                features = scan_features(encoder, scan, device)
                arrays = as_arrays(features, request.stages, pretrained.sha256)
                write_arrays(path, arrays)
            yield name, kept(encoder, scan, arrays, number, was_there)

    request.output.mkdir(parents=True, exist_ok=True)
    with locked(request.output / "lock"):
        done: dict[str, Done] = {}
        for name, result in with_progress(results(), "encoding", len(scans)):
            if isinstance(result, str):
                failed[name] = result
                continue
            done[name] = result

        write_report(request, pretrained, done, failed)
        if request.pca and done:
            draw_colours(request, done)
        if request.nearest and len(done) > 1:
            list_neighbours(request, pretrained, done)
    tell(request, done, failed)


def check_output(folder: Path, pretrained: PretrainedEncoder) -> None:
    """Raise UserError if a folder holds features of other weights."""
    report = folder / REPORT
    if report.is_file() and pretrained.sha256 not in report.read_text(encoding="utf-8"):
        raise UserError(
            f"{folder} holds features of other weights, see {REPORT}: choose another folder, or "
            f"remove it"
        )


def file_of(request: Request, name: str) -> Path:
    """Where the features of a scan are written."""
    return request.output / f"{name}.{request.file_format}"


def kept(
    encoder: Encoder,
    scan: PreparedScan,
    arrays: dict[str, np.ndarray],
    seed: int,
    was_there: bool,
) -> Done:
    """What is needed of a scan whose features are written.

    Args:
        encoder: that they are of.
        scan: as it was prepared.
        arrays: of its file.
        seed: of the tokens that are drawn.
        was_there: whether an earlier run wrote the file.
    """
    tokens = np.zeros((0, len(arrays["vector"])), np.float32)
    step = (1, 1, 1)
    last = last_map(arrays)
    if last is not None:
        content = content_of_map(encoder, scan, last)
        tokens = sampled_tokens(last.values.numpy(), content.numpy(), seed)
        step = triple(round(m / s) for m, s in zip(last.spacing, scan.spacing))

    return Done(
        vector=arrays["vector"],
        shown=shown_scan(scan.image.numpy(), scan.spacing),
        step=step,
        tokens=tokens,
        warnings=scan.warnings,
        was_there=was_there,
    )


def write_report(
    request: Request, pretrained: PretrainedEncoder, done: dict[str, Done], failed: dict[str, str]
) -> None:
    """Write what was done by which weights, and what failed."""
    content = {
        "weights": pretrained.path,
        "weights_sha256": pretrained.sha256,
        "encoder": pretrained.name,
        "format": request.file_format,
        "stages": request.stages,
        "scans": {name: list(scan.warnings) for name, scan in done.items()},
        "failed": failed,
        **request.decisions.to_dict(),
    }
    write_json_atomically(request.output / REPORT, content)


def draw_colours(request: Request, done: dict[str, Done]) -> None:
    """Draw every scan under the colours of its features."""
    tokens = np.concatenate([scan.tokens for scan in done.values()])
    try:
        colours = fit_colours(tokens)
    except ValueError as error:
        raise UserError(f"--pca: {error}") from None

    for name, scan in with_progress(done.items(), "drawing", len(done)):
        arrays = read_arrays(file_of(request, name))
        last = max(int(key[5:]) for key in arrays if key[5:].isdecimal())
        values = arrays[f"stage{last}"].astype(np.float32)
        figure = pca_figure(scan.shown, values, scan.step, colours, name)
        save_figure(figure, request.output / f"{name}.png")


def list_neighbours(request: Request, pretrained: PretrainedEncoder, done: dict[str, Done]) -> None:
    """Write nearest.csv and nearest.html."""
    vectors = {name: scan.vector for name, scan in done.items()}
    neighbours = nearest_scans(vectors, request.nearest)
    write_neighbours_csv(request.output / "nearest.csv", neighbours)

    shown = {name: scan.shown for name, scan in done.items()}
    page = neighbours_page(neighbours, shown, pretrained.path)
    with replacing(request.output / "nearest.html") as partial:
        partial.write_text(page, encoding="utf-8")


def tell(request: Request, done: dict[str, Done], failed: dict[str, str]) -> None:
    """Say what was written and what was not. Raises UserError if nothing was."""
    for name, scan in done.items():
        for warning in scan.warnings:
            print(f"WARNING: {name}: {warning}", file=sys.stderr)
    for name, reason in failed.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)

    if not done:
        raise UserError(f"none of {len(failed)} scans in {request.scans} could be used, see above")
    if request.nearest and len(done) == 1:
        print("--nearest: one scan alone has no neighbours", file=sys.stderr)
    earlier = sum(scan.was_there for scan in done.values())
    there = f" ({earlier} of them by an earlier run)" if earlier else ""
    print(f"{len(done)} scans encoded{there}, {len(failed)} left out: {request.output}", flush=True)
