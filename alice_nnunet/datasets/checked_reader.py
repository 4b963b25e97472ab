"""Reading of scans in prediction: each is checked first, and outputs keep their header's forms.

nnU-Net's predictor asks the plans for its reader, in each of its processes. It builds the network
with the same plans, so the trainer can put these plans in their place.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alice_nnunet.checks.findings import Decisions, Finding, raise_errors, settled
from alice_nnunet.checks.formats import is_nifti
from alice_nnunet.checks.header import Geometry
from alice_nnunet.checks.voxels import Window, check_channel
from alice_nnunet.datasets.labeled_case import CT_WINDOW
from alice_nnunet.datasets.raw_image import check_headers, readable

FORMS = "alice_header_forms"  # entry of a case's properties
TRAINING = "alice_training"  # attribute of the plans of a training, which reads no scans

# Environment variables for what --take, --accept and --fill-nan say in commands of this package
TAKE = "alice_take"
ACCEPT = "alice_accept"
FILL_NAN = "alice_fill_nan"


def decisions_of_environment() -> Decisions:
    """What the user decides about scans that are segmented."""
    take = os.environ.get(TAKE, "").replace(",", " ").split()
    accept = os.environ.get(ACCEPT, "").replace(",", " ").split()
    return Decisions(frozenset(take), bool(os.environ.get(FILL_NAN)), frozenset(accept))


class CheckingPlans(PlansManager):
    """Plans whose reader checks what it reads. Only the reader differs."""

    @property
    def image_reader_writer_class(self) -> Callable:  # type: ignore[override]
        reader = super().image_reader_writer_class
        (configuration, *_) = self.plans["configurations"].values()
        schemes = configuration.get("normalization_schemes", [])
        windows = [CT_WINDOW if scheme == "CTNormalization" else None for scheme in schemes]
        return functools.partial(CheckedReader, reader(), windows, expected_orientation(self.plans))


def check_what_is_read(plans: PlansManager) -> None:
    """Let prediction with these plans check its scans; the plans of a training stay as they are."""
    if not getattr(plans, TRAINING, False):
        plans.__class__ = CheckingPlans


def expected_orientation(plans: dict) -> str | None:
    """The orientation of files that a model of nnU-Net's own plans can read, None for any.

    Their reader does not turn files, and the network flips the axes of the training files.
    """
    block = plans.get("alice")
    if not block or "Reorient" in plans["image_reader_writer"]:
        return None
    if plans["transpose_forward"] != [0, 1, 2]:
        return None

    flipped = block["input"]["flip_axes"]  # of (z, y, x), against RAS
    return "".join(letters[axis in flipped] for axis, letters in ((2, "RL"), (1, "AP"), (0, "SI")))


class CheckedReader:
    """One of nnU-Net's readers behind checks.

    Args:
        reader: nnU-Net's.
        windows: of the channels, None for those that are not CT.
        orientation: that files must have, None for any.
    """

    def __init__(self, reader, windows: list[Window | None], orientation: str | None):
        self.reader = reader
        self.windows = windows
        self.orientation = orientation

    def read_images(self, image_fnames) -> tuple[np.ndarray, dict]:
        """nnU-Net's. Raises BadImage, with the names of the files, if they cannot be used."""
        files = [Path(name) for name in image_fnames]
        if not all(is_nifti(path) for path in files):
            return self.reader.read_images(image_fnames)

        decisions = decisions_of_environment()
        geometries, findings = check_headers(files, decisions)
        findings += self.orientation_findings(geometries)
        raise_errors(findings, name_files=True)

        with readable(files, geometries) as paths:
            image, properties = self.reader.read_images([str(path) for path in paths])
        for voxels, window, path in zip(image, self.windows, files):
            findings += settled(check_channel(voxels, window, path.name, decisions), decisions)
        raise_errors(findings, name_files=True)
        for finding in findings:
            print(f"WARNING: {finding.text}", flush=True)

        header = nibabel.load(files[0]).header
        properties[FORMS] = {
            "codes": (int(header["sform_code"]), int(header["qform_code"])),
            "affine": geometries[files[0].name].affine,
        }
        return image, properties

    def orientation_findings(self, geometries: dict[str, Geometry]) -> list[Finding]:
        """A finding for each file whose axes run otherwise than those of the training."""
        return [
            Finding(
                "orientation",
                name,
                f"stored as {geometry.orientation}",
                f"{self.orientation}, as the scans that the model was trained on; nnU-Net's own "
                f"plans do not turn files",
                "Turn the file, or train with plans of alice-plan, which turn every file",
            )
            for name, geometry in geometries.items()
            if self.orientation and geometry.orientation != self.orientation
        ]

    def read_seg(self, seg_fname) -> tuple[np.ndarray, dict]:
        return self.reader.read_seg(seg_fname)

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        """nnU-Net's, with both forms of the header if the scan had both."""
        self.reader.write_seg(seg, output_fname, properties)
        forms = properties.get(FORMS)
        if forms is None or not is_nifti(Path(output_fname)):
            return

        written = nibabel.load(output_fname)
        labels = np.asarray(written.dataobj)
        sform, qform = (code or 1 for code in forms["codes"])
        result = nibabel.Nifti1Image(labels, forms["affine"])
        result.set_sform(forms["affine"], sform)
        result.set_qform(forms["affine"], qform, strip_shears=True)
        result.header.set_xyzt_units("mm")
        nibabel.save(result, output_fname)
