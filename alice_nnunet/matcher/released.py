"""The weights that SAM's authors released, for the "paper" preset of AnatomyNet.

They were learned from axial slices whose x and y run against ours (LPS; ours is RAS), and from other intensities. Both
are folded into the weights: kernels are mirrored, the stem's kernel and batch norm take our 0 to 1. What stays different:
the release sees -1024 to 3071 HU, ours has lost what lies outside its window; around a volume the release sees
PADDED_HU, ours the window's floor; and a stride of 2 starts at the other end of an axis, so that a vector may stand for
voxels next to those it stood for (with sizes of 16 n + 1 along y and x only the upsampling in the fine pyramid differs).
The released network takes voxels of 2 mm.
"""

from pathlib import Path

import torch
from torch import Tensor

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.matcher.network import AnatomyNet
from alice_nnunet.matcher.presets import PRESETS

WINDOW = (-125.0, 255.0)  # HU that are 0 and 1 for us
RELEASED_HU = (
    -1024.0,
    3071.0,
)  # HU that are 0 and RELEASED_RANGE, less RELEASED_BIAS, for the release
RELEASED_RANGE, RELEASED_BIAS = 255.0, 50.0
PER_HU = RELEASED_RANGE / (RELEASED_HU[1] - RELEASED_HU[0])
SCALE = (WINDOW[1] - WINDOW[0]) * PER_HU  # released intensity = SCALE * ours + SHIFT
SHIFT = (WINDOW[0] - RELEASED_HU[0]) * PER_HU - RELEASED_BIAS
PADDED_HU = RELEASED_BIAS / PER_HU + RELEASED_HU[0]  # the release's 0

RELEASED_NAMES = {  # our modules -> those of the release
    "stem": "backbone.conv1",
    **{f"stages.{i}": f"backbone.layer{i + 1}" for i in range(4)},
    **{f"fine.lateral.{i}": f"neck.lateral_convs.{i}.conv" for i in range(3)},
    "fine.out": "neck.fpn_convs.0.conv",
    "coarse.lateral.0": "read_out_head.lateral_convs.0.conv",
    "coarse.out": "read_out_head.fpn_convs.0.conv",
}
SEMANTIC = "semantic_head."  # a third head that UAE adds
LISTED = 20  # tensors that an error names at most


def from_released(path: Path) -> dict[str, Tensor]:
    """Weights for AnatomyNet(**PRESETS["paper"].network) from a released checkpoint of SAM, or of UAE without its semantic head.

    Raises UserError where the file cannot be read, or where a tensor is missing, unexpected or of another shape.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is not a released checkpoint of SAM: it holds no state_dict")
    released = {
        name: value
        for name, value in checkpoint["state_dict"].items()
        if not name.startswith(SEMANTIC)
    }
    expected = expected_shapes()
    check_shapes(released, {theirs: shape for theirs, shape in expected.values()}, path)
    return folded({ours: released[theirs] for ours, (theirs, _) in expected.items()})


def expected_shapes() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our name of each tensor -> its name in the release, and its shape."""
    with torch.device("meta"):
        state = AnatomyNet(**PRESETS["paper"].network).state_dict()
    return {name: (released_name(name), tuple(value.shape)) for name, value in state.items()}


def released_name(name: str) -> str:
    """The release's name of a tensor of ours."""
    ours, theirs = next((a, b) for a, b in RELEASED_NAMES.items() if name.startswith(a + "."))
    return theirs + name[len(ours) :]


def check_shapes(released: dict, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Raises UserError that lists every tensor that does not fit."""
    found = {
        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        for name, value in released.items()
    }
    wrong = (
        [f"{name} is missing" for name in shapes if name not in found]
        + [f"{name} is unexpected" for name in found if name not in shapes]
        + [
            f"{name} is {found[name]}, not {shape}"
            for name, shape in shapes.items()
            if found.get(name, shape) != shape
        ]
    )
    if wrong:
        more = f", and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise UserError(
            f"{path} does not fit the network of SAM: {', '.join(wrong[:LISTED])}{more}"
        )


def folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights, under our names, that answer for a volume in RAS with 0 to 1 as the given ones do for LPS and their intensities."""
    weights = {
        name: value.flip(3, 4) if value.ndim == 5 else value for name, value in weights.items()
    }
    kernel = weights["stem.conv.weight"]  # (O, 1, D, H, W)
    weights["stem.bn.running_mean"] = weights["stem.bn.running_mean"] - SHIFT * kernel.sum(
        (1, 2, 3, 4)
    )
    weights["stem.conv.weight"] = SCALE * kernel
    return weights
