"""Reading of scans in prediction: each is checked and turned, and outputs lie as the scan does.

nnU-Net's predictor asks the plans for its reader, in each of its processes. It builds the network
with the same plans, so the trainer can put these plans in their place.
"""

import functools
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alice_nnunet.checks.findings import (
    ACCEPTABLE,
    TAKEABLE,
    Decisions,
    Finding,
    raise_errors,
    settled,
)
from alice_nnunet.checks.formats import is_nifti
from alice_nnunet.checks.voxels import Window, check_channel
from alice_nnunet.datasets.labeled_case import CT_WINDOW, LabeledCase, check_case
from alice_nnunet.datasets.raw_dataset import passed_over_text, reason_to_pass_over
from alice_nnunet.datasets.raw_image import check_headers, readable, turned

FORMS = "alice_header_forms"  # entry of a case's properties
TRAINING = "alice_training"  # attribute of the plans of a training, which reads no scans

# Environment variables for what --take, --accept and --fill-nan say in commands of this package
TAKE = "alice_take"
ACCEPT = "alice_accept"
FILL_NAN = "alice_fill_nan"


def decisions_of_environment() -> Decisions:
    """What the user decides about scans that are segmented."""
    take = words_of(TAKE, tuple(TAKEABLE))
    accept = words_of(ACCEPT, tuple(ACCEPTABLE))
    return Decisions(take, bool(os.environ.get(FILL_NAN)), accept)


def words_of(variable: str, known: tuple[str, ...]) -> frozenset[str]:
    """The words of an environment variable. Raises ValueError if one of them is not known."""
    words = os.environ.get(variable, "").replace(",", " ").split()
    unknown = [word for word in words if word not in known]
    if unknown:
        raise ValueError(f"{variable}={unknown[0]}: it must be some of {', '.join(known)}")
    return frozenset(words)


def with_variables(findings: list[Finding]) -> list[Finding]:
    """The findings, with environment variables in place of options: nnU-Net's commands have none.

    `--fill-nan` becomes `alice_fill_nan=1`, and `--take sform` becomes `alice_take=sform`.
    """
    result = []
    for finding in findings:
        remedy = finding.remedy.replace("--fill-nan", f"{FILL_NAN}=1")
        remedy = re.sub(r"--(take|accept) ([\w-]+)", r"alice_\1=\2", remedy)
        if finding.is_error and remedy != finding.remedy:
            remedy += " (environment variable)"
        result.append(replace(finding, remedy=remedy))
    return result


class CheckingPlans(PlansManager):
    """Plans whose reader checks what it reads. Only the reader differs."""

    @property
    def image_reader_writer_class(self) -> Callable:  # type: ignore[override]
        reader = super().image_reader_writer_class
        return functools.partial(
            CheckedReader, reader(), windows_of(self.plans), expected_orientation(self.plans)
        )


def check_what_is_read(plans: PlansManager) -> None:
    """Let prediction with these plans check its scans; the plans of a training stay as they are."""
    if not getattr(plans, TRAINING, False):
        plans.__class__ = CheckingPlans


def windows_of(plans: dict) -> list[Window | None]:
    """CT_WINDOW for each channel that plans normalise as CT, None for the others."""
    (configuration, *_) = plans["configurations"].values()
    schemes = configuration.get("normalization_schemes", [])
    return [CT_WINDOW if scheme == "CTNormalization" else None for scheme in schemes]


def check_scans(cases: dict[str, list[Path]], plans: dict) -> dict[str, list[Finding]]:
    """Look at all scans before the first is segmented.

    Args:
        cases: files of each case, one for each channel.
        plans: of the model.

    Returns:
        The errors of each case that cannot be used. Of a single case only the headers are read: it
        is checked when it is segmented.
    """
    decisions = decisions_of_environment()
    windows = windows_of(plans)
    errors = {}
    for case, files in cases.items():
        if len(cases) == 1:
            _, findings = check_headers(files, decisions)
        else:
            findings = check_case(LabeledCase(tuple(files), None), windows, set(), decisions)
        errors[case] = [finding for finding in with_variables(findings) if finding.is_error]
    return {case: found for case, found in errors.items() if found}


def expected_orientation(plans: dict) -> str | None:
    """The orientation that files are turned to for nnU-Net's own plans, None for those that turn.

    Their reader does not turn files, and the network knows the axes of the training files. A
    training with axes in another order than z, y, x is refused when it starts.
    """
    block = plans.get("alice")
    if not block or "Reorient" in plans["image_reader_writer"]:
        return None

    flipped = block["input"]["flip_axes"]  # of (z, y, x), against RAS
    return "".join(letters[axis in flipped] for axis, letters in ((2, "RL"), (1, "AP"), (0, "SI")))


class CheckedReader:
    """One of nnU-Net's readers behind checks.

    Args:
        reader: nnU-Net's.
        windows: of the channels, None for those that are not CT.
        orientation: such as LPS, that files are turned to, None to leave that to the reader.
    """

    def __init__(self, reader, windows: list[Window | None], orientation: str | None):
        self.reader = reader
        self.windows = windows
        self.orientation = orientation

    def read_images(self, image_fnames) -> tuple[np.ndarray, dict]:
        """nnU-Net's. Raises BadImage, with the names of the files, if they cannot be used."""
        files = [Path(name) for name in image_fnames]
        decisions = decisions_of_environment()
        print_passed_over(files[0])
        geometries, findings = check_headers(files, decisions)
        findings = with_variables(findings)
        raise_errors(findings, name_files=True)

        with readable(files, geometries, self.orientation) as paths:
            image, properties = self.reader.read_images([str(path) for path in paths])
            if isinstance(self.reader, SimpleITKIO):
                restore_nonfinite(image, paths)
        findings += with_variables(self.check_voxels(image, files, decisions))
        raise_errors(findings, name_files=True)
        for finding in findings:
            print(f"WARNING: {finding.text}", flush=True)

        properties[FORMS] = {
            "codes": header_codes(files[0]),
            "affine": geometries[files[0].name].affine,
        }
        return image, properties

    def check_voxels(
        self, image: np.ndarray, files: list[Path], decisions: Decisions
    ) -> list[Finding]:
        """Findings on the voxels of a scan, (C, Z, Y, X); NaN are filled if the user wants it."""
        findings = []
        for voxels, window, path in zip(image, self.windows, files):
            findings += check_channel(voxels, window, path.name, decisions)
        return settled(findings, decisions)

    def read_seg(self, seg_fname) -> tuple[np.ndarray, dict]:
        return self.reader.read_seg(seg_fname)

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        """nnU-Net's, in the orientation of the scan and with both forms of the header."""
        if not np.any(seg):
            print(f"WARNING: {Path(output_fname).name}: nothing was segmented", flush=True)
        forms = properties.get(FORMS)
        if forms is None:
            self.reader.write_seg(seg, output_fname, properties)
            return

        output = Path(output_fname)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".alice_") as folder:
            written = Path(folder) / output.name
            self.reader.write_seg(seg, str(written), properties)
            if is_nifti(output):
                write_in_both_forms(written, forms["affine"], forms["codes"])
            else:
                turn_by_itk(written, forms["affine"])
            written.replace(output)


def print_passed_over(first_channel: Path) -> None:
    """Name the files beside a scan that nnU-Net passes over without a word.

    Several processes read the scans of one folder: that of the first scan names them.
    """
    parts = re.fullmatch(r".+_\d{4}(\.[a-z.]+)", first_channel.name)
    if parts is None:
        return

    ending = parts[1]
    files = sorted(first_channel.parent.glob("*"))
    scans = [path for path in files if re.fullmatch(r"[^.].*_\d{4}" + re.escape(ending), path.name)]
    if scans[0] != first_channel:
        return

    reason = "the name must end in the channel's number"
    passed_over = {
        path.name: reason_to_pass_over(path, ending, reason) for path in files if path not in scans
    }
    if passed_over:
        print(passed_over_text(passed_over), flush=True)


def restore_nonfinite(image: np.ndarray, paths: list[Path]) -> None:
    """Write NaN where NIfTI files have no number: SimpleITK reads 0, the HU of water, there.

    Args:
        image: (C, Z, Y, X), as SimpleITK read the files; changed in place.
        paths: of the channels.
    """
    for channel, path in zip(image, paths):
        if is_nifti(path) and nibabel.load(path).get_data_dtype().kind == "f":
            voxels = np.asarray(nibabel.load(path).dataobj)
            channel[~np.isfinite(voxels.reshape(voxels.shape[:3]).T)] = np.nan


def header_codes(path: Path) -> tuple[int, int]:
    """Codes of sform and qform; 0 for files that are not NIfTI."""
    if not is_nifti(path):
        return 0, 0
    header = nibabel.load(path).header
    return int(header["sform_code"]), int(header["qform_code"])


def write_in_both_forms(path: Path, affine: np.ndarray, codes: tuple[int, int]) -> None:
    """Rewrite a NIfTI file of labels in the orientation of an affine, which both forms then hold.

    Args:
        path: of the file, which covers the same voxels along any axes.
        affine: of the scan.
        codes: of the scan's sform and qform; 1 is written for 0.
    """
    written = nibabel.load(path)
    labels = np.asarray(turned(written, "".join(nibabel.aff2axcodes(affine))).dataobj)

    result = nibabel.Nifti1Image(labels, affine)
    sform, qform = (code or 1 for code in codes)
    result.set_sform(affine, sform)
    result.set_qform(affine, qform, strip_shears=True)
    result.header.set_xyzt_units("mm")
    nibabel.save(result, path)


def turn_by_itk(path: Path, affine: np.ndarray) -> None:
    """Rewrite a file of labels, not NIfTI, in the orientation of an affine (mm, RAS)."""
    codes = "".join(nibabel.aff2axcodes(affine))
    labels = sitk.ReadImage(str(path))
    sitk.WriteImage(sitk.DICOMOrient(labels, codes), str(path), useCompression=True)
