"""Segment the cases of a folder with the nnU-Net model beside this file. Called by predict.sh.

All inputs are looked at first. Those that cannot be used are listed, and the others segmented.
"""

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

from alice_nnunet.checks.findings import BadImage
from alice_nnunet.datasets.checked_reader import check_scans
from alice_nnunet.datasets.raw_dataset import IMAGE_LIKE

HERE = Path(__file__).resolve().parent
MIB = 2**20


def main() -> int:
    arguments = parse_arguments()

    # The model takes seconds to load: look at the inputs first.
    cases, refused = ({}, {}) if arguments.load else look_at_inputs(arguments.inputs)

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
    rows += [{"case": case, "error": reason} for case, reason in refused.items()]
    for case, files in cases.items():
        rows.append(predict(predictor, case, files, arguments.outputs, settings))
        (arguments.outputs / "resources.json").write_text(json.dumps(report, indent=4) + "\n")

    failed = [row["case"] for row in rows if "error" in row]
    failures = f"; failed: {', '.join(failed)}" if failed else ""
    print(f"{len(rows) - len(failed)} of {len(rows)} cases are in {arguments.outputs}{failures}")
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


def look_at_inputs(folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Find the cases, and list on the screen what cannot be segmented.

    Returns:
        The files of each case that can be segmented, and the reasons for the other cases.
        Exits with a message if no case can be segmented.
    """
    dataset_json = json.loads((HERE / "model" / "dataset.json").read_text())
    plans = json.loads((HERE / "model" / "plans.json").read_text())

    cases, refused = find_cases(folder, len(dataset_json["channel_names"]))
    paths = {case: [Path(file) for file in files] for case, files in cases.items()}
    for case, findings in check_scans(paths, plans).items():
        refused[case] = "; ".join(finding.text for finding in findings)
        del cases[case]

    if refused:
        print(f"{len(refused)} of {len(refused) + len(cases)} inputs cannot be segmented:")
        print("\n".join(f"  {reason}" for reason in refused.values()), flush=True)
    if not cases:
        sys.exit(f"predict.sh: no case in {folder} can be segmented")
    return cases, refused


def find_cases(folder: Path, channels: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The files of each case, one for each channel, and the reasons for what is not complete.

    Exits with a message if there is no case at all.
    """
    if not folder.is_dir():
        sys.exit(f"predict.sh: no folder {folder}")

    files_of: dict[str, list[str]] = {}
    refused = {}
    for path in sorted(folder.iterdir()):
        parts = re.fullmatch(r"(.+)_\d{4}\.nii\.gz", path.name)
        if path.name.startswith(".") or path.is_dir():
            print(f"passed over: {path.name}, a hidden file or a folder", flush=True)
        elif parts:
            files_of.setdefault(parts[1], []).append(path.name)
        elif path.name.lower().endswith(IMAGE_LIKE):
            refused[path.name] = (
                f"{path.name}: is not called CASE_0000.nii.gz. Rename or convert it"
            )
        else:
            print(f"passed over: {path.name}, no image", flush=True)

    if not files_of:
        found = ", ".join(refused) or "no .nii.gz files"
        sys.exit(f"predict.sh: {folder} must hold CASE_0000.nii.gz; it has {found}")

    cases = {}
    for case, names in files_of.items():
        expected = [f"{case}_{channel:04d}.nii.gz" for channel in range(channels)]
        wrong = sorted({*expected} ^ {*names})
        if wrong:
            refused[case] = (
                f"{case}: the model takes {channels} channels, so these files are missing or too "
                f"many: {', '.join(wrong)}"
            )
        else:
            cases[case] = [str(folder / name) for name in expected]
    return cases, refused


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
        except BadImage as error:
            row["error"] = str(error)
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
