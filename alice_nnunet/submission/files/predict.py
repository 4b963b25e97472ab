"""Segment the cases of a folder with the nnU-Net model beside this file. Called by predict.sh."""

import argparse
import json
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation,
)

HERE = Path(__file__).resolve().parent
MIB = 2**20


def main() -> int:
    arguments = parse_arguments()

    # The model takes seconds to load: look at the inputs first.
    dataset_json = json.loads((HERE / "model" / "dataset.json").read_text())
    channels = len(dataset_json["channel_names"])
    cases = {} if arguments.load else find_cases(arguments.inputs, channels)

    started = time.perf_counter()
    settings = json.loads((HERE / "settings.json").read_text())
    predictor = load_model(settings)
    rows: list[dict[str, Any]] = []
    report = {
        "device": str(predictor.device),
        "torch": torch.__version__,
        "load_seconds": round(time.perf_counter() - started, 2),
        "peak_rss_of": "case" if reset_peaks(predictor.device) else "the process so far",
        "cases": rows,
    }
    print(
        f"Model loaded in {report['load_seconds']} s, "
        f"folds: {len(predictor.list_of_parameters)}, device {report['device']}",
        flush=True,
    )
    if arguments.load:
        return 0

    arguments.outputs.mkdir(parents=True, exist_ok=True)
    for case, files in cases.items():
        rows.append(predict(predictor, case, files, arguments.outputs, settings))
        (arguments.outputs / "resources.json").write_text(json.dumps(report, indent=4) + "\n")

    failed = [row["case"] for row in rows if "error" in row]
    failures = f"; failed: {', '.join(failed)}" if failed else ""
    print(f"{len(cases) - len(failed)} of {len(cases)} cases are in {arguments.outputs}{failures}")
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="predict.sh", description="Segment INPUTS/CASE_0000.nii.gz into OUTPUTS/CASE.nii.gz."
    )

    for name in ("inputs", "outputs"):
        parser.add_argument(
            name,
            nargs="?",
            type=Path,
            default=Path("/workspace") / name,
            help="default: %(default)s",
        )
    parser.add_argument("--load", action="store_true", help="load the model and exit")
    return parser.parse_args()


def find_cases(folder: Path, channels: int) -> dict[str, list[str]]:
    """Case -> its files, one for each channel. Exits with a message if any is missing."""
    if not folder.is_dir():
        sys.exit(f"predict.sh: no folder {folder}")

    names = sorted(path.name for path in folder.glob("*.nii.gz"))
    cases = {}
    strange = []
    for name in names:
        parts = re.fullmatch(r"(.+)_\d{4}\.nii\.gz", name)
        if parts is None:
            strange.append(name)
        else:
            case = parts[1]
            cases[case] = [f"{case}_{channel:04d}.nii.gz" for channel in range(channels)]

    if strange or not names:
        found = ", ".join(strange) or "no .nii.gz files"
        sys.exit(f"predict.sh: {folder} must hold CASE_0000.nii.gz; it has {found}")

    expected = {name for files in cases.values() for name in files}
    wrong = sorted(expected ^ set(names))
    if wrong:
        sys.exit(
            f"predict.sh: the model takes {channels} channels, so in {folder} these files are "
            f"missing or too many: {', '.join(wrong)}"
        )

    return {case: [str(folder / name) for name in files] for case, files in cases.items()}


def load_model(settings: dict) -> nnUNetPredictor:
    """nnU-Net's predictor with the settings of settings.json, on a GPU if there is one."""
    predictor = nnUNetPredictor(
        tile_step_size=settings["step_size"],
        use_mirroring=settings["mirroring"],
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        allow_tqdm=False,
    )

    predictor.initialize_from_trained_model_folder(
        str(HERE / "model"), tuple(settings["folds"]), settings["checkpoint"]
    )
    return predictor


def predict(
    predictor: nnUNetPredictor, case: str, files: list[str], outputs: Path, settings: dict
) -> dict:
    """Segment one case; the result appears in outputs in one step.

    Returns the case's row of the report: seconds, peaks of memory in MiB, and a failure as error.
    """
    row: dict[str, Any] = {"case": case}
    reset_peaks(predictor.device)
    started = time.perf_counter()

    # nnU-Net leaves copies of its settings beside the result.
    with tempfile.TemporaryDirectory(dir=outputs, prefix=".") as folder:
        try:
            predictor.predict_from_files_sequential([files], [str(Path(folder) / case)])
            postprocess(Path(folder) / f"{case}.nii.gz", settings["postprocessing"])
            (Path(folder) / f"{case}.nii.gz").replace(outputs / f"{case}.nii.gz")
        except Exception as error:  # one bad scan must not cost the others
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"

    row["seconds"] = round(time.perf_counter() - started, 2)
    row["peak_rss_mib"] = peak_rss()
    if predictor.device.type == "cuda":
        # What torch reserved; the CUDA context comes on top.
        row["peak_gpu_mib"] = round(torch.cuda.max_memory_reserved() / MIB)

    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def postprocess(path: Path, steps: list[list]) -> None:
    """Do in a segmentation what nnUNetv2_apply_postprocessing does, by the same function.

    steps: of each, the labels and regions (lists of labels) whose largest component is kept.
    """
    if not steps:
        return

    image = nibabel.load(path)
    labels = np.asarray(image.dataobj)
    for labels_or_regions in steps:
        labels = remove_all_but_largest_component_from_segmentation(labels, labels_or_regions)
    nibabel.save(nibabel.Nifti1Image(labels, image.affine, image.header), path)


def reset_peaks(device: torch.device) -> bool:
    """Restart the measurement of peak memory. Returns whether Linux does so for main memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_rss() -> int | None:
    """Peak main memory of the process in MiB since reset_peaks, None if the system has no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return round(int(found[1]) / 1024) if found else None


if __name__ == "__main__":
    sys.exit(main())
