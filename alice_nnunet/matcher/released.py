"""The weights that SAM's authors released, for the "paper" preset of SamNet.

They were learned from axial slices whose x and y run against ours (LPS; ours is RAS), and from
other intensities. Both are folded into the weights: kernels are mirrored, and the kernel and the
batch norm of the stem take our 0 to 1. Three differences remain:

- The release sees -1024 to 3071 HU; our images have lost what lies outside their window.
- Around a volume the release sees PADDED_HU, our networks the floor of the window.
- A stride of 2 starts at the other end of an axis, so a vector may stand for voxels next to those
  that it stood for. With sizes of 16 n + 1 along y and x only the upsampling in the fine pyramid
  differs.

The released network takes voxels of 2 mm.
"""

from pathlib import Path

import torch
from torch import Tensor

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.matcher.network import SamNet
from alice_nnunet.matcher.presets import PRESETS

WINDOW = (-125.0, 255.0)  # HU that are 0 and 1 for our networks
RELEASED_WINDOW = (-1024.0, 3071.0)  # HU that the release maps to 0 and RELEASED_RANGE
RELEASED_RANGE = 255.0
RELEASED_BIAS = 50.0  # that the release subtracts afterwards

# released intensity = SCALE * ours + SHIFT
PER_HU = RELEASED_RANGE / (RELEASED_WINDOW[1] - RELEASED_WINDOW[0])
SCALE = (WINDOW[1] - WINDOW[0]) * PER_HU
SHIFT = (WINDOW[0] - RELEASED_WINDOW[0]) * PER_HU - RELEASED_BIAS
PADDED_HU = RELEASED_BIAS / PER_HU + RELEASED_WINDOW[0]  # where the released intensity is 0

# Our modules and their names in the release.
RELEASED_NAMES = {
    "stem": "backbone.conv1",
    **{f"stages.{i}": f"backbone.layer{i + 1}" for i in range(4)},
    **{f"fine.lateral.{i}": f"neck.lateral_convs.{i}.conv" for i in range(3)},
    "fine.out": "neck.fpn_convs.0.conv",
    "coarse.lateral.0": "read_out_head.lateral_convs.0.conv",
    "coarse.out": "read_out_head.fpn_convs.0.conv",
}
SEMANTIC = "semantic_head."  # prefix of a third head that UAE adds
LISTED = 20  # tensors that an error names at most


def from_released(path: Path) -> dict[str, Tensor]:
    """Read weights for SamNet(**PRESETS["paper"].network) from a released checkpoint.

    Args:
        path: a checkpoint of SAM, or of UAE, whose semantic head is left out.

    Raises:
        UserError: the file cannot be read, or a tensor is missing, unexpected or of another shape.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is not a released checkpoint of SAM: it holds no state_dict")
    released = {
        name: value
        for name, value in checkpoint["state_dict"].items()
        if not name.startswith(SEMANTIC)
    }

    with torch.device("meta"):
        ours = SamNet(**PRESETS["paper"].network).state_dict()
    shapes = {released_name(name): tuple(value.shape) for name, value in ours.items()}
    check_shapes(released, shapes, path)
    return fold({name: released[released_name(name)] for name in ours})


def released_name(name: str) -> str:
    """The release's name of a tensor of ours."""
    for ours, theirs in RELEASED_NAMES.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def check_shapes(released: dict, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Compare the tensors of a file with the expected shapes.

    Raises:
        UserError: it lists the tensors that do not fit.
    """
    found = {}
    for name, value in released.items():
        is_tensor = isinstance(value, Tensor)
        found[name] = tuple(value.shape) if is_tensor else type(value).__name__

    problems = [f"{name} is missing" for name in shapes if name not in found]
    problems += [f"{name} is unexpected" for name in found if name not in shapes]
    for name, shape in shapes.items():
        if name in found and found[name] != shape:
            problems.append(f"{name} is {found[name]}, not {shape}")

    if problems:
        listed = ", ".join(problems[:LISTED])
        if len(problems) > LISTED:
            listed += f", and {len(problems) - LISTED} more"
        raise UserError(f"{path} does not fit the network of SAM: {listed}")


def fold(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold our orientation and intensities into released weights.

    For a volume in RAS with 0 to 1, the result computes what the given weights compute for the same
    volume in LPS with the release's intensities.

    Args:
        weights: under our names.
    """
    folded = {}
    for name, value in weights.items():
        folded[name] = value.flip(3, 4) if value.ndim == 5 else value  # kernels, (O, I, D, H, W)

    kernel = folded["stem.conv.weight"]
    shift = SHIFT * kernel.sum((1, 2, 3, 4))
    folded["stem.bn.running_mean"] = folded["stem.bn.running_mean"] - shift
    folded["stem.conv.weight"] = SCALE * kernel
    return folded
