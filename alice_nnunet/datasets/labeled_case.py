"""Check the images and the label of one labeled case, and correct them where the user decides."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from alice_nnunet.checks.channels import is_ct
from alice_nnunet.checks.findings import NO_DECISIONS, Decisions, Finding, settled
from alice_nnunet.checks.formats import UnreadableError, first_line, open_image
from alice_nnunet.checks.header import Geometry
from alice_nnunet.checks.labels import check_label_geometry, check_label_values
from alice_nnunet.checks.voxels import AIR, SHORTEST_BODY, Window, check_channel
from alice_nnunet.datasets.raw_image import check_header, check_headers

CT_WINDOW: Window = (-125.0, 255.0)  # HU; Alice, Sec. 4.1
ORIGINALS = "_original"  # added to the name of a folder for the files before their correction

# Findings that --take and --fill-nan answer by writing a corrected file
CORRECTED = ("two-orientations", "no-orientation", "label-geometry", "not-finite", "last-axis")


@dataclass(frozen=True)
class LabeledCase:
    """The files of a case: one image for each channel, and the label (None if there is none)."""

    images: tuple[Path, ...]
    label: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        return self.images if self.label is None else (*self.images, self.label)


def channel_windows(dataset_json: dict) -> list[Window | None]:
    """CT_WINDOW for each channel that nnU-Net treats as CT, None for the others."""
    return [CT_WINDOW if is_ct(name) else None for name in dataset_json["channel_names"].values()]


def check_case(
    case: LabeledCase,
    windows: list[Window | None],
    values: set[int],
    decisions: Decisions = NO_DECISIONS,
) -> list[Finding]:
    """Check headers and voxels of a case, and its label.

    Args:
        case: the files.
        windows: of the channels, see channel_windows.
        values: that the label may have.
        decisions: of the user.
    """
    geometries, findings = check_headers(list(case.images), decisions)
    for path, window in zip(case.images, windows):
        if path.name in geometries:
            is_fragment = geometries[path.name].extent.min() < SHORTEST_BODY
            of_image = check_image(path, window, decisions, is_fragment)
            if case.label is None:  # only nnU-Net's reader for labeled data minds
                of_image = [finding for finding in of_image if finding.kind != "last-axis"]
            findings += of_image

    if case.label is not None:
        image = geometries.get(case.images[0].name)
        findings += check_label(case.label, image, case.images[0].name, values, decisions)
    return settled(findings, decisions)


def check_image(
    path: Path, window: Window | None, decisions: Decisions, is_fragment: bool
) -> list[Finding]:
    """Check the voxels of an image that has a geometry."""
    try:
        voxels, findings = read_voxels(path, decisions)
    except UnreadableError as error:
        return [Finding("unreadable", path.name, str(error), remedy="Copy the file again")]
    voxels = voxels.astype(np.float32)
    return findings + check_channel(voxels, window, path.name, decisions, is_fragment)


def check_label(
    path: Path, image: Geometry | None, image_name: str, values: set[int], decisions: Decisions
) -> list[Finding]:
    """Check a label. image: geometry of its image, None if that has none."""
    geometry, findings = check_header(path, decisions)
    if geometry is None:
        return findings

    if image is not None:
        of_place = check_label_geometry(geometry, image, path.name, image_name, decisions)
        taken = "image-geometry" in decisions.take and geometry.shape == image.shape
        if taken and findings and not of_place:
            of_place = [taken_finding(findings[0])]
        findings = of_place if taken else findings + of_place

    try:
        voxels, of_voxels = read_voxels(path, decisions)
    except UnreadableError as error:
        return [Finding("unreadable", path.name, str(error), remedy="Copy the file again")]
    return findings + of_voxels + check_label_values(voxels, values, path.name)


def taken_finding(of_header: Finding) -> Finding:
    """The finding on a label whose header is wrong in itself, and whose image's is taken."""
    remedy = "The image's geometry is taken (--take image-geometry)"
    return Finding(
        "label-geometry", of_header.file, of_header.found, remedy=remedy, severity="warning"
    )


def read_voxels(path: Path, decisions: Decisions) -> tuple[np.ndarray, list[Finding]]:
    """The voxels in the order of the file, and a finding if a last axis of one is to be removed.

    Raises:
        UnreadableError: with the reason.
    """
    image = open_image(path)
    try:
        voxels = np.asanyarray(image.dataobj)
    except Exception as error:  # whatever the readers stumble on
        raise UnreadableError(f"cannot be read: {first_line(error)}") from None

    if voxels.ndim == 3:
        return voxels, []
    found = f"4D with one volume: its shape is {voxels.shape}"
    if "3d" in decisions.take:
        remedy = "The volume is taken (--take 3d)"
        finding = Finding("last-axis", path.name, found, remedy=remedy, severity="warning")
    else:
        remedy = "Remove the last axis, or take the volume with --take 3d"
        finding = Finding("last-axis", path.name, found, "a 3D volume, as nnU-Net reads", remedy)
    return voxels.reshape(voxels.shape[:3]), [finding]


def correct_case(case: LabeledCase, findings: list[Finding], decisions: Decisions) -> list[Path]:
    """Write the files anew that the user decided about. The given ones go to FOLDER_original.

    nnU-Net's own commands read these files, so what was decided must stand in them.

    Args:
        case: the files.
        findings: of check_case, without errors.
        decisions: of the user.

    Returns:
        The files that were written.
    """
    kinds: dict[str, set[str]] = {}
    for finding in findings:
        kinds.setdefault(finding.file, set()).add(finding.kind)
    wrong = [path for path in case.files if kinds.get(path.name, set()).intersection(CORRECTED)]
    if not wrong:
        return []

    geometries, _ = check_headers(list(case.images), decisions)
    for path in wrong:
        geometry = geometries.get(path.name)
        if path == case.label and "label-geometry" in kinds[path.name]:
            geometry = geometries[case.images[0].name]
        elif geometry is None:
            geometry, _ = check_header(path, decisions)
        assert geometry is not None  # there are no errors
        write_corrected(path, geometry)
    return wrong


def write_corrected(path: Path, geometry: Geometry) -> None:
    """Replace a NIfTI file by one with this geometry in both forms and air where it is not finite.

    The file as it was is kept in the folder FOLDER_original.
    """
    image = open_image(path)
    voxels = np.asanyarray(image.dataobj).reshape(geometry.shape)
    if voxels.dtype.kind == "f":
        voxels = np.where(np.isfinite(voxels), voxels, voxels.dtype.type(AIR))

    corrected = nibabel.Nifti1Image(voxels, geometry.affine)
    corrected.set_sform(geometry.affine, 1)
    corrected.set_qform(geometry.affine, 1)
    corrected.header.set_xyzt_units("mm")

    originals = path.parent.with_name(path.parent.name + ORIGINALS)
    originals.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=originals, prefix=".") as folder:
        temporary = Path(folder) / path.name
        nibabel.save(corrected, temporary)
        if not (originals / path.name).exists():
            shutil.copy2(path, originals / path.name)
        temporary.replace(path)
