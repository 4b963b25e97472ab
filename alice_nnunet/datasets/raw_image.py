"""Read the images of one case in nnUNet_raw, or refuse them with a plain reason."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

from alice_nnunet.checks.channels import check_same_grid
from alice_nnunet.checks.findings import NO_DECISIONS, Decisions, Finding, raise_errors, settled
from alice_nnunet.checks.formats import UnreadableError, first_line, is_nifti, open_image
from alice_nnunet.checks.header import Geometry, check_image_header
from alice_nnunet.checks.voxels import SHORTEST_BODY, Window, check_channel, check_extent
from alice_nnunet.geometry import Spacing


def check_header(
    path: Path, decisions: Decisions = NO_DECISIONS
) -> tuple[Geometry | None, list[Finding]]:
    """The geometry of a file, None if it has none, and what is wrong with its header."""
    try:
        image = open_image(path)
    except UnreadableError as error:
        return None, [Finding("unreadable", path.name, str(error), remedy="Copy the file again")]

    geometry, findings = check_image_header(image, path.name, decisions)
    return geometry, settled(findings, decisions)


def read_geometry(path: Path, decisions: Decisions = NO_DECISIONS) -> Geometry:
    """The geometry of a file. Raises BadImage (a ValueError) if it cannot be used."""
    geometry, findings = check_header(path, decisions)
    raise_errors(findings)
    assert geometry is not None  # a header without geometry has an error
    return geometry


def check_headers(
    files: list[Path], decisions: Decisions = NO_DECISIONS
) -> tuple[dict[str, Geometry], list[Finding]]:
    """The geometry of the channels of a case, by file name, and what is wrong with them."""
    geometries = {}
    findings = []
    for path in files:
        geometry, of_file = check_header(path, decisions)
        findings += of_file
        if geometry is not None:
            geometries[path.name] = geometry

    if len(geometries) > 1:
        findings += check_same_grid(geometries)
    return geometries, findings


def read_case(
    files: list[Path], reader, decisions: Decisions = NO_DECISIONS
) -> tuple[np.ndarray, dict, list[Finding]]:
    """Read all channels of one case.

    Args:
        files: one file per channel.
        reader: one of nnU-Net's image readers for NIfTI.
        decisions: of the user.

    Returns:
        nnU-Net's float32 array (C, Z, Y, X), its properties, and the warnings on the headers.

    Raises:
        BadImage: a ValueError; the images cannot be used, with the reason.
    """
    geometries, findings = check_headers(files, decisions)
    refused = {finding.file for finding in findings if finding.is_error}
    for name, geometry in geometries.items():
        if name not in refused:  # its size would follow from what is wrong
            extent = geometry.reoriented().extent
            findings += settled(check_extent(extent, "the volume", name), decisions)
    raise_errors(findings, name_files=len(files) > 1)

    try:
        with readable(files, geometries) as paths, contextlib.redirect_stdout(io.StringIO()):
            image, properties = reader.read_images([str(path) for path in paths])
    except MemoryError:
        raise ValueError("not enough memory to read it") from None
    except Exception as error:
        raise ValueError(f"cannot be read: {first_line(error)}. Copy the file again") from None
    return image, properties, findings


@contextlib.contextmanager
def readable(
    files: list[Path], geometries: dict[str, Geometry], orientation: str | None = None
) -> Iterator[list[Path]]:
    """Yield files that nnU-Net's readers read in these geometries: the same, or temporary copies.

    They read 3D NIfTI files by their first valid form, and readers that do not turn files get
    files in the orientation that they need.

    Args:
        files: of the channels.
        geometries: by file name.
        orientation: such as LPS; None for that of each file.
    """
    with tempfile.TemporaryDirectory(prefix="alice_") as folder:
        paths = []
        for number, path in enumerate(files):
            image = open_image(path)
            geometry = geometries[path.name]
            same = image.ndim == 3 and np.array_equal(image.affine, geometry.affine)
            stays = orientation in (None, geometry.orientation)

            if same and stays and (is_nifti(path) or orientation):
                paths.append(path)
                continue
            voxels = np.asanyarray(image.dataobj).reshape(geometry.shape)
            copy = nibabel.Nifti1Image(voxels, geometry.affine)
            paths.append(Path(folder) / f"{number:04d}.nii")
            if orientation is not None:
                copy = turned(copy, orientation)
            nibabel.save(copy, paths[-1])
        yield paths


def turned(
    image: nibabel.spatialimages.SpatialImage, orientation: str
) -> nibabel.spatialimages.SpatialImage:
    """The same image with axes that run to, for example, L, P and S. No voxel changes."""
    now = nibabel.io_orientation(image.affine)
    wanted = nibabel.orientations.axcodes2ornt(orientation)
    return image.as_reoriented(nibabel.orientations.ornt_transform(now, wanted))


def check_voxels(
    image: np.ndarray,
    windows: list[Window | None],
    names: list[str],
    spacing: Spacing,
    decisions: Decisions = NO_DECISIONS,
) -> list[Finding]:
    """Check the voxels of all channels, and fill those that are not finite if the user wants it.

    Args:
        image: (C, Z, Y, X), HU for CT; changed in place by --fill-nan.
        windows: bottom and top in HU for each CT channel, None for the others.
        names: of the files.
        spacing: mm, (z, y, x).
        decisions: of the user.

    Returns:
        The warnings.

    Raises:
        BadImage: there is nothing to see in a channel, or CT is not in HU.
    """
    is_fragment = min(n * s for n, s in zip(image.shape[1:], spacing)) < SHORTEST_BODY
    findings = []
    for voxels, window, name in zip(image, windows, names):
        findings += check_channel(voxels, window, name, decisions, is_fragment)

    findings = settled(findings, decisions)
    raise_errors(findings, name_files=len(names) > 1)
    return findings
