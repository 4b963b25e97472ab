"""Features on disk: an .npz or .safetensors file for each scan.

An array `vector` (channels,) and, for each stage that is kept, `stage1` (channels, d, h, w) with
`stage1_affine` (4, 4) and `stage1_spacing` (3,), and so on.
"""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from alice_nnunet.features.maps import ScanFeatures
from alice_nnunet.files import replacing

FORMATS = ("npz", "safetensors")
STAGES = ("all", "last", "none")


def as_arrays(features: ScanFeatures, stages: str) -> dict[str, np.ndarray]:
    """The arrays of a file. Maps are kept in half precision, which halves gigabytes.

    Args:
        features: of a scan.
        stages: one of STAGES.
    """
    arrays = {"vector": features.vector.numpy()}
    number_of_maps = len(features.maps)
    for number, of_stage in enumerate(features.maps, 1):
        if stages == "none" or (stages == "last" and number < number_of_maps):
            continue
        arrays[f"stage{number}"] = of_stage.values.numpy().astype(np.float16)
        arrays[f"stage{number}_affine"] = of_stage.affine
        arrays[f"stage{number}_spacing"] = np.array(of_stage.spacing)
    return arrays


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
