"""Scans as the classifier takes them (Alice, B.2), each made once and kept on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Resize

from alice_nnunet.checks.findings import Decisions
from alice_nnunet.classification.cases import Case
from alice_nnunet.classification.recipe import ClassificationRecipe
from alice_nnunet.features.scans import read_scan, to_window
from alice_nnunet.files import replacing
from alice_nnunet.workers import run_each, with_progress


@dataclass(frozen=True)
class VolumeCache:
    """Prepared volumes in a folder.

    Attributes:
        folder: of the files; one for each size and window.
        recipe: says how volumes are made.
        decisions: of the user, where a file leaves a choice.
    """

    folder: Path
    recipe: ClassificationRecipe
    decisions: Decisions

    def path(self, name: str) -> Path:
        """Where the volume of a case is kept."""
        return self.folder / f"{name}.npz"

    def load(self, name: str) -> torch.Tensor:
        """(C, D, H, W) float32, 0 to 1."""
        with np.load(self.path(name), allow_pickle=False) as file:
            return torch.from_numpy(file["image"].astype(np.float32))

    def has(self, case: Case) -> bool:
        """Whether the volume of a case is there, made from its files as they are now."""
        try:
            with np.load(self.path(case.name), allow_pickle=False) as file:
                return bool(str(file["source"]) == self.source_of(case))
        except Exception:  # missing, or unfinished by another program: make it again
            return False

    def source_of(self, case: Case) -> str:
        """What a volume depends on: files, their sizes and times, decisions."""
        parts = [str(sorted(self.decisions.to_dict().items()))]
        for path in case.files:
            state = path.stat()
            parts.append(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}")
        return "\n".join(parts)


def cache_of(root: Path, recipe: ClassificationRecipe, decisions: Decisions) -> VolumeCache:
    """The cache for the size and window of a recipe, in a folder of the data set."""
    size = "x".join(map(str, recipe.size))
    low, high = recipe.window
    return VolumeCache(root / f"{size}_{low:g}_{high:g}", recipe, decisions)


def prepare(files: list[Path], recipe: ClassificationRecipe, decisions: Decisions) -> np.ndarray:
    """Read a scan, turn it to RAS, clip it to the window and resize it.

    Args:
        files: one for each channel.
        recipe: size and window.
        decisions: of the user.

    Returns:
        (C, *size) float32, 0 to 1.

    Raises:
        ValueError: the scan cannot be used, with the reason.
    """
    windows = [recipe.window] * len(files)
    scan = read_scan(files, list(windows), decisions)
    return resized(to_window(scan.image, recipe.window), recipe.size)


def resized(image: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """(C, Z, Y, X) -> (C, *size), trilinear; where it shrinks, smoothed before."""
    resize = Resize(size, mode="trilinear", align_corners=False, anti_aliasing=True)
    return np.asarray(resize(torch.from_numpy(image)), np.float32)


def make_volumes(cache: VolumeCache, cases: tuple[Case, ...], processes: int) -> dict[str, str]:
    """Make the volumes that are missing. Returns the cases that cannot be used, with reasons."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    jobs = {case.name: (cache, case) for case in cases if not cache.has(case)}

    failed = {}
    for name, reason in with_progress(
        run_each(make_volume, jobs, processes), "preprocessing", len(jobs)
    ):
        if reason is not None:
            failed[name] = reason
    return failed


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside: processes that prepare volumes share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_volume(cache: VolumeCache, case: Case) -> str | None:
    """Make one volume. Returns why it cannot be made, None if it is there."""
    try:
        with one_thread():
            image = prepare(list(case.files), cache.recipe, cache.decisions)
    except ValueError as error:
        return str(error)

    with replacing(cache.path(case.name)) as partial, partial.open("wb") as file:
        source = np.array(cache.source_of(case))
        np.savez_compressed(file, image=image.astype(np.float16), source=source)
    return None
