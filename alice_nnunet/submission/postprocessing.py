"""The postprocessing that nnUNetv2_find_best_configuration has found to help in cross-validation.

It is a list of steps; each keeps the largest connected component of one label or of several
together, and makes the others background. nnU-Net pickles it beside the merged predictions of the
folds. A submission holds it as plain values.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation,
)
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string

from alice_nnunet.errors import UserError

FILE = "postprocessing.pkl"
OPTION = "--disable_postprocessing"

# A step: labels, and regions as lists of labels, whose union counts as one.
Step = list[int | list[int]]


def find_postprocessing(model: Path, folds: list[int | str]) -> list[Step]:
    """The postprocessing for these folds of a model, as nnU-Net found it, and print what it is.

    Args:
        model: nnU-Net's results folder of one configuration.
        folds: that predict.

    Raises:
        UserError: it cannot be read, or has a step that is not nnU-Net's.
    """
    path = model / f"crossval_results_folds_{folds_tuple_to_string(folds)}" / FILE
    if path.is_file():
        steps = read_postprocessing(path)
        found = "; ".join(f"largest component of {step_text(step)}" for step in steps)
        print(f"postprocessing: {found or 'none, as none helped in cross-validation'} ({path})")
        return steps

    others = sorted(other.parent.name for other in model.glob(f"crossval_results_folds_*/{FILE}"))
    reason = f"there is one of {', '.join(others)}" if others else "none was determined"
    print(
        f"postprocessing: none; {reason} (nnUNetv2_find_best_configuration determines it in the "
        "cross-validation of the folds that predict)"
    )
    return []


def step_text(step: Step) -> str:
    """The labels of a step in words."""
    labels = ["+".join(map(str, part)) if isinstance(part, list) else str(part) for part in step]
    return f"label {' and '.join(labels)}"


class PlainUnpickler(pickle.Unpickler):
    """Reads nnU-Net's one function, and numbers of numpy, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        function = remove_all_but_largest_component_from_segmentation
        if (module, name) == (function.__module__, function.__name__):
            return function
        if module.startswith("numpy") and name in ("scalar", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_postprocessing(path: Path) -> list[Step]:
    """The steps in a file of nnU-Net. Raises UserError if it has others than nnU-Net's."""
    try:
        with path.open("rb") as file:
            functions, arguments = PlainUnpickler(file).load()
        if any(set(kwargs) != {"labels_or_regions"} for kwargs in arguments):
            raise ValueError(f"arguments {[sorted(kwargs) for kwargs in arguments]}")
        return [as_step(kwargs["labels_or_regions"]) for _, kwargs in zip(functions, arguments)]
    except Exception as error:  # whatever a damaged or foreign pickle raises
        raise UserError(
            f"{path} holds something else than nnU-Net's postprocessing ({error}): determine it "
            f"again with nnUNetv2_find_best_configuration, or leave it out with {OPTION}"
        ) from None


def as_step(labels_or_regions: Any) -> Step:
    """nnU-Net's argument as plain values: a label, a region (tuple) or a list of both."""
    parts = labels_or_regions if isinstance(labels_or_regions, list) else [labels_or_regions]
    return [
        int(part) if isinstance(part, (int, np.integer)) else [int(label) for label in part]
        for part in parts
    ]
