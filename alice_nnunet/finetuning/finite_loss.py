"""Stop a fine-tuning whose loss is not finite, and name the cases that it came from."""

from pathlib import Path

import numpy as np

from alice_nnunet.errors import UserError
from alice_nnunet.names import FINAL, LATEST

CHECKPOINTS = (LATEST, "checkpoint_best.pth", FINAL)  # nnU-Net's, in the folder of a fold


def check_loss(
    loss: float | np.ndarray, cases: list[str], step: str, results: Path, preprocessed: Path
) -> None:
    """Raise UserError if a loss is not finite.

    Nothing is saved after the step, so the last checkpoint has been trained without it.

    Args:
        loss: of one batch.
        cases: of the batch.
        step: where the loss was computed, such as "training step in epoch 3".
        results: folder of the fold.
        preprocessed: folder of the cases.
    """
    if np.isfinite(loss).all():
        return

    saved = [name for name in CHECKPOINTS if (results / name).is_file()]
    kept = f"{results / saved[0]} is from before and is kept" if saved else "nothing was saved yet"
    names = ", ".join(sorted(set(map(str, cases))))
    raise UserError(
        f"the loss of a {step} is {float(np.mean(loss)):g}, so the training ends here; the cases "
        f"of its batch are {names}, in {preprocessed}. {kept[0].upper()}{kept[1:]}. Look at these "
        f"cases: NaN in an image or a label spoils a network (alice-plan reports such files), and "
        f"so does a learning rate that is too high. After the correction preprocess again, and "
        f"continue with --c"
    )
