"""CPU seconds of the checks beside those of the preprocessing that follows them.

    python benchmarks/checks.py ID [-preset tiny]

ID is a labeled dataset in nnUNet_raw. Its images are preprocessed as by alice-preprocess, and its
cases as by nnUNetv2_preprocess with plans of the preset's spacing, both in one process. Results go
to a temporary folder. The time is that of the process on a CPU, so other programs do not matter.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from unittest.mock import patch

from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alice_nnunet.checks.labels import label_values
from alice_nnunet.datasets import raw_image
from alice_nnunet.datasets.labeled_case import channel_windows, check_case
from alice_nnunet.datasets.raw_dataset import dataset_name, open_raw_dataset
from alice_nnunet.environment import nnunet_folder
from alice_nnunet.model.presets import CROPS
from alice_nnunet.names import CONFIGURATION
from alice_nnunet.planning.labeled_dataset import labeled_cases
from alice_nnunet.pretrain.datasets import preprocessing
from alice_nnunet.pretrain.datasets.pretrain_plans import make_plans

CHECKS = ("check_voxels", "content_digest", "body_findings", "fewest_bytes")  # and headers


class Stopwatch:
    """Sums the CPU seconds of calls."""

    def __init__(self):
        self.seconds = 0.0

    def timed(self, function):
        """The function, with its time added."""

        def call(*arguments, **named):
            started = time.process_time()
            result = function(*arguments, **named)
            self.seconds += time.process_time() - started
            return result

        return call


@contextlib.contextmanager
def timed_checks() -> Iterator[Stopwatch]:
    """Add up the time of the checks in alice-preprocess."""
    watch = Stopwatch()
    with contextlib.ExitStack() as stack:
        for module, names in ((preprocessing, CHECKS), (raw_image, ("check_headers",))):
            for name in names:
                timed = watch.timed(getattr(module, name))
                stack.enter_context(patch.object(module, name, timed))
        yield watch


def unlabeled(dataset: str, preset: str) -> tuple[float, float]:
    """CPU seconds of the checks and of all of alice-preprocess."""
    with timed_checks() as watch, contextlib.redirect_stdout(io.StringIO()):
        started = time.process_time()
        preprocessing.preprocess_dataset(dataset, 1, preset=preset)
        return watch.seconds, time.process_time() - started


def labeled(dataset: str, preset: str) -> tuple[float, float]:
    """CPU seconds of alice-plan's checks and of nnU-Net's preprocessing of the same cases."""
    raw = open_raw_dataset(dataset)
    folder = nnunet_folder("nnUNet_raw") / raw.name
    cases = labeled_cases(folder)
    windows = channel_windows(raw.dataset_json)
    values = label_values(raw.dataset_json)

    started = time.process_time()
    for case in cases.values():
        check_case(case, windows, values)
    checks = time.process_time() - started

    crops = CROPS[preset]
    manager = PlansManager(make_plans(raw, crops.spacing, crops.size, preset))
    configuration = manager.get_configuration(CONFIGURATION)
    started = time.process_time()
    for name, case in cases.items():
        target = nnunet_folder("nnUNet_preprocessed") / name
        images = [str(path) for path in case.images]
        DefaultPreprocessor(verbose=False).run_case_save(
            str(target), images, str(case.label), manager, configuration, raw.dataset_json
        )
    return checks, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("-preset", choices=tuple(CROPS), default="tiny")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(nnUNet_preprocessed=folder)
        name = dataset_name(arguments.dataset)
        print("| command | preset | CPU s of checks | of preprocessing | share |")
        print("|---|---|---|---|---|")
        for command, measure in (
            ("alice-preprocess", unlabeled),
            ("alice-plan, nnUNetv2_preprocess", labeled),
        ):
            checks, whole = measure(name, arguments.preset)
            print(
                f"| {command} | {arguments.preset} | {checks:.2f} | {whole:.1f} "
                f"| {checks / whole:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
