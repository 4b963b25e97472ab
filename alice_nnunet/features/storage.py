"""Features on disk: an .npz or .safetensors file for each scan.

An array `vector` (channels,) and, for each stage that is kept, `stage1` (channels, d, h, w) with
`stage1_affine` (4, 4) and `stage1_spacing` (3,), and so on. `weights_sha256` (32,) are the bytes of
the checksum of the weights.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from alice_nnunet.features.maps import FeatureMap, ScanFeatures
from alice_nnunet.files import replacing

FORMATS = ("npz", "safetensors")
STAGES = ("all", "last", "none")


def as_arrays(features: ScanFeatures, stages: str, weights: str) -> dict[str, np.ndarray]:
    """The arrays of a file. Maps are kept in half precision, which halves gigabytes.

    Args:
        features: of a scan.
        stages: one of STAGES.
        weights: SHA-256 of the weights.
    """
    arrays = {"vector": features.vector.numpy(), "weights_sha256": digest(weights)}
    number_of_maps = len(features.maps)
    for number, of_stage in enumerate(features.maps, 1):
        if stages == "none" or (stages == "last" and number < number_of_maps):
            continue
        arrays[f"stage{number}"] = of_stage.values.numpy().astype(np.float16)
        arrays[f"stage{number}_affine"] = of_stage.affine
        arrays[f"stage{number}_spacing"] = np.array(of_stage.spacing)
    return arrays


def digest(sha256: str) -> np.ndarray:
    """A checksum as bytes, (32,) uint8, which both formats can hold."""
    return np.frombuffer(bytes.fromhex(sha256), np.uint8)


def stored(path: Path, sources: list[Path], stages: str, weights: str) -> dict | None:
    """The arrays of an earlier run, if they are what this run would write.

    Args:
        path: of the features.
        sources: files of the scan; all must be older.
        stages: one of STAGES.
        weights: SHA-256 of the weights.

    Returns:
        None if the file is missing, or of other weights, older, or with other maps.
    """
    if not path.is_file():
        return None
    newest = max(source.stat().st_mtime for source in sources)
    if path.stat().st_mtime <= newest:
        return None

    arrays = read_arrays(path)
    of_weights = arrays.get("weights_sha256", np.zeros(0, np.uint8))
    if not np.array_equal(of_weights, digest(weights)):
        return None
    maps = [name for name in arrays if name[5:].isdecimal()]
    enough = {"none": len(maps) == 0, "last": len(maps) == 1, "all": len(maps) > 1}
    return arrays if enough[stages] else None


def last_map(arrays: dict[str, np.ndarray]) -> FeatureMap | None:
    """The last stage that a file holds, or None."""
    numbers = [int(name[5:]) for name in arrays if name[5:].isdecimal()]
    if not numbers:
        return None
    name = f"stage{max(numbers)}"
    z, y, x = (float(s) for s in arrays[f"{name}_spacing"])
    values = torch.from_numpy(arrays[name].astype(np.float32))
    return FeatureMap(values, arrays[f"{name}_affine"], (z, y, x))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays into a file of the format that its name ends in, completely or not at all."""
    with replacing(path) as partial:
        if path.suffix == ".npz":
            with partial.open("wb") as file:
                named: dict[str, Any] = dict(arrays)
                np.savez(file, **named)
        else:
            whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            save_file(whole, partial, metadata={"format": "np"})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of either format."""
    if path.suffix != ".npz":
        return load_file(path)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
