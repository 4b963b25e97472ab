"""Segment the cases of a folder with the nnU-Net model beside this file. predict.sh calls it with the environment it needs."""

import argparse
import json
import os
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

HERE = Path(__file__).resolve().parent
MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="predict.sh", description="Segment INPUTS/CASE_0000.nii.gz into OUTPUTS/CASE.nii.gz."
    )
    parser.add_argument(
        "inputs",
        nargs="?",
        type=Path,
        default=Path("/workspace/inputs"),
        help="default: %(default)s",
    )
    parser.add_argument(
        "outputs",
        nargs="?",
        type=Path,
        default=Path("/workspace/outputs"),
        help="default: %(default)s",
    )
    parser.add_argument("--load", action="store_true", help="load the model and end")
    arguments = parser.parse_args()
    channels = len(json.loads((HERE / "model" / "dataset.json").read_text())["channel_names"])
    cases = {} if arguments.load else find_cases(arguments.inputs, channels)
    started = time.perf_counter()
    predictor = load_model()
    report = {
        "device": str(predictor.device),
        "torch": torch.__version__,
        "load_seconds": round(time.perf_counter() - started, 2),
        "peak_rss_of": "case" if forget_peaks(predictor.device) else "the process so far",
        "cases": [],
    }
    print(
        f"Model loaded in {report['load_seconds']} s, folds: {len(predictor.list_of_parameters)}, device {report['device']}",
        flush=True,
    )
    if arguments.load:
        return 0
    arguments.outputs.mkdir(parents=True, exist_ok=True)
    for case, files in cases.items():
        report["cases"].append(predict(predictor, case, files, arguments.outputs))
        (arguments.outputs / "resources.json").write_text(json.dumps(report, indent=4) + "\n")
    failed = [row["case"] for row in report["cases"] if "error" in row]
    print(
        f"{len(cases) - len(failed)} of {len(cases)} cases are in {arguments.outputs}"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


def find_cases(folder: Path, channels: int) -> dict[str, list[str]]:
    """Case -> its files, one for each channel. Ends with a message where there are none or a channel is missing."""
    if not folder.is_dir():
        sys.exit(f"predict.sh: no folder {folder}")
    names = sorted(path.name for path in folder.glob("*.nii.gz"))
    strange = [name for name in names if not re.fullmatch(r".+_\d{4}\.nii\.gz", name)]
    if strange or not names:
        sys.exit(
            f"predict.sh: {folder} must hold CASE_0000.nii.gz; it has {', '.join(strange) or 'no .nii.gz files'}"
        )
    cases = {
        name[:-12]: [f"{name[:-12]}_{channel:04d}.nii.gz" for channel in range(channels)]
        for name in names
    }
    wanted = {file for files in cases.values() for file in files}
    if wrong := sorted(wanted ^ set(names)):
        sys.exit(
            f"predict.sh: the model takes {channels} channels, so in {folder} these are missing or too many: {', '.join(wrong)}"
        )
    return {case: [str(folder / file) for file in files] for case, files in cases.items()}


def load_model() -> nnUNetPredictor:
    """nnU-Net's predictor with the folds and settings of settings.json, on a GPU where there is one."""
    settings = json.loads((HERE / "settings.json").read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = nnUNetPredictor(
        tile_step_size=settings["step_size"],
        use_mirroring=settings["mirroring"],
        device=device,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(
        str(HERE / "model"), tuple(settings["folds"]), settings["checkpoint"]
    )
    return predictor


def predict(predictor: nnUNetPredictor, case: str, files: list[str], outputs: Path) -> dict:
    """Segment one case; the result appears whole in outputs. Returns its row of the report; a failure is in it as error."""
    started, row = time.perf_counter(), {"case": case}
    forget_peaks(predictor.device)
    with tempfile.TemporaryDirectory(
        dir=outputs, prefix="."
    ) as folder:  # nnU-Net leaves copies of its settings there
        try:
            predictor.predict_from_files_sequential([files], [str(Path(folder) / case)])
            os.replace(Path(folder) / f"{case}.nii.gz", outputs / f"{case}.nii.gz")
        except Exception as error:  # one bad scan must not cost the others
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"
    row |= {"seconds": round(time.perf_counter() - started, 2), "peak_rss_mib": peak_rss()}
    if predictor.device.type == "cuda":
        row["peak_gpu_mib"] = round(
            torch.cuda.max_memory_reserved() / MIB
        )  # torch's; the CUDA context comes on top
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def forget_peaks(device: torch.device) -> bool:
    """Start measuring memory anew. Returns whether the kernel does so for the process's main memory (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_rss() -> int | None:
    """Peak of the process's main memory in MiB since forget_peaks, None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return round(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


if __name__ == "__main__":
    sys.exit(main())
