"""Headers of images: size, place and orientation, and whether they contradict themselves."""

from dataclasses import dataclass

import nibabel
import numpy as np

from alice_nnunet.checks.findings import Decisions, Finding
from alice_nnunet.geometry import Triple, triple
from alice_nnunet.text import millimetres, voxels

SMALLEST_SPACING = 0.05  # mm
LARGEST_SPACING = 50.0  # mm
LARGEST_COSINE = 0.01  # between two axes that count as perpendicular
FORM_TOLERANCE = 0.1  # voxels by which corners may lie apart in two descriptions of one grid

SPATIAL_UNITS = 7  # bits of xyzt_units
WRONG_UNITS = {1: "metres", 3: "micrometres"}  # codes of NIfTI; 0 is unknown, 2 is mm


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a file lie in the patient.

    Attributes:
        shape: voxels along the axes of the file, (i, j, k).
        affine: (4, 4), from voxels to mm in RAS.
    """

    shape: Triple
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """mm along the axes of the file."""
        return nibabel.affines.voxel_sizes(self.affine)

    @property
    def extent(self) -> np.ndarray:
        """mm along the axes of the file."""
        return self.spacing * self.shape

    @property
    def orientation(self) -> str:
        """Where the axes of the file run to, such as LPS."""
        return "".join(nibabel.aff2axcodes(self.affine))

    def reoriented(self) -> "Geometry":
        """The same with axes in the order and direction of RAS."""
        orientation = nibabel.io_orientation(self.affine)
        x, y, z = (self.shape[axis] for axis in np.argsort(orientation[:, 0]))
        to_file = nibabel.orientations.inv_ornt_aff(orientation, self.shape)
        return Geometry((x, y, z), self.affine @ to_file)


def corner_distance(first: Geometry, second: Geometry) -> float:
    """The largest distance of a corner of the first grid from where the second has it, in mm."""
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in first.shape]), -1).reshape(-1, 3)
    places = [nibabel.affines.apply_affine(g.affine, corners) for g in (first, second)]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


def is_same_grid(first: Geometry, second: Geometry) -> bool:
    """Whether two grids of one shape are the same but for rounding."""
    return corner_distance(first, second) <= FORM_TOLERANCE * first.spacing.min()


def check_image_header(
    image: nibabel.spatialimages.SpatialImage, name: str, decisions: Decisions
) -> tuple[Geometry | None, list[Finding]]:
    """Check the header of an open image.

    Args:
        image: by nibabel; other formats as formats.py opens them.
        name: of the file.
        decisions: of the user.

    Returns:
        The geometry, None if the header has none, and the findings.
    """
    shape, problem = shape_of(image, name)
    if problem:
        return None, [problem]

    affine, findings = chosen_affine(image, name, decisions)
    zooms = image.header.get_zooms()[:3]
    problem = size_problem(affine, zooms, name)
    if problem:
        return None, [*findings, problem]

    geometry = Geometry(triple(shape), affine)
    findings += unit_findings(image, name)
    findings += axis_findings(geometry, name)
    return geometry, findings


def shape_of(image, name: str) -> tuple[tuple[int, ...], Finding | None]:
    """The shape without last axes of one, and what is wrong with it."""
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]

    found = None
    if len(shape) != 3:
        found = f"not a 3D volume: its shape is {image.shape}"
    elif 0 in shape:
        found = f"has no voxels: its shape is {shape}"
    elif 1 in shape:
        found = f"only one slice along an axis: its shape is {shape}"
    elif image.get_data_dtype().kind not in "iufb":
        found = f"not one number in a voxel: its data type is {image.get_data_dtype()}"

    if found is None:
        return shape, None
    return shape, Finding("shape", name, found, "a 3D volume of several slices")


def chosen_affine(image, name: str, decisions: Decisions) -> tuple[np.ndarray, list[Finding]]:
    """The affine, and findings if the header gives no orientation or two that contradict."""
    header = image.header
    if not isinstance(header, nibabel.Nifti1Header):
        return image.affine, []

    sform = int(header["sform_code"])
    qform = int(header["qform_code"])
    if not sform and not qform:
        return unoriented_affine(image, name, decisions)
    if not (sform and qform):
        return image.affine, []

    shape = image.shape[:3]
    forms = {
        "sform": Geometry(shape, header.get_sform()),
        "qform": Geometry(shape, header.get_qform()),
    }
    if not all(np.isfinite(form.affine).all() for form in forms.values()):
        return image.affine, []  # other checks name it
    if is_same_grid(forms["sform"], forms["qform"]):
        return image.affine, []

    apart = corner_distance(forms["sform"], forms["qform"])
    found = (
        f"the header's two forms contradict each other: sform {forms['sform'].orientation}, "
        f"qform {forms['qform'].orientation}, corners up to {apart:.3g} mm apart"
    )
    taken = [form for form in ("sform", "qform") if form in decisions.take]
    if len(taken) == 1:
        finding = Finding(
            "two-orientations",
            name,
            found,
            remedy=f"The {taken[0]} is taken (--take {taken[0]})",
            severity="warning",
        )
        return forms[taken[0]].affine, [finding]

    finding = Finding(
        "two-orientations",
        name,
        found,
        "one orientation; nibabel takes the sform and other tools may take the qform",
        "Correct the header, or choose with --take sform or --take qform",
    )
    return image.affine, [finding]


def unoriented_affine(image, name: str, decisions: Decisions) -> tuple[np.ndarray, list[Finding]]:
    """The affine of a header without orientation: that of its voxel sizes alone."""
    found = "the header gives no orientation: qform_code and sform_code are 0"
    if "as-stored" in decisions.take:
        finding = Finding(
            "no-orientation",
            name,
            found,
            remedy="Its axes are taken to run to the right, front and head (--take as-stored)",
            severity="warning",
        )
        return np.diag([*image.header.get_zooms()[:3], 1.0]).astype(float), [finding]

    finding = Finding(
        "no-orientation",
        name,
        found,
        "a code of 1 or more and the directions of the axes",
        "Write the orientation into the header, or, if the axes run to the right, front and head, "
        "use --take as-stored",
    )
    return image.affine, [finding]


def size_problem(affine: np.ndarray, zooms: tuple[float, ...], name: str) -> Finding | None:
    """What is wrong with the voxel sizes."""
    with np.errstate(invalid="ignore"):
        edges = nibabel.affines.voxel_sizes(affine)

    if not np.isfinite(affine).all():
        found = f"the affine has entries that are no numbers: {affine[:3].tolist()}"
        return Finding("voxel-size", name, found, "numbers", "Correct the header")

    if not np.isfinite(zooms).all() or min(zooms) <= 0 or edges.min() <= 0:
        sizes = edges if min(zooms) > 0 else zooms
        found = f"voxels of {millimetres(sizes)}"
        return Finding("voxel-size", name, found, "positive numbers", "Correct the header")

    if not np.allclose(edges, zooms, rtol=0.01):
        found = (
            f"the header has two voxel sizes, {tuple(map(float, zooms))} mm in pixdim and "
            f"{tuple(edges.round(3).tolist())} mm in the affine"
        )
        return Finding("voxel-size", name, found, remedy="Correct the header")
    return None


def unit_findings(image, name: str) -> list[Finding]:
    """A finding if the header says that its sizes are not in mm."""
    header = image.header
    if not isinstance(header, nibabel.Nifti1Header):
        return []

    unit = WRONG_UNITS.get(int(header["xyzt_units"]) & SPATIAL_UNITS)
    if unit is None:
        return []

    zooms = voxels(map(float, header.get_zooms()[:3]))
    return [
        Finding(
            "units",
            name,
            f"the header says that its voxel sizes, {zooms}, are in {unit}",
            "mm",
            "Correct the header, or take them as mm with --accept units",
        )
    ]


def axis_findings(geometry: Geometry, name: str) -> list[Finding]:
    """Findings on voxel sizes that no scanner makes and on axes that are not perpendicular."""
    findings = []
    spacing = geometry.spacing

    if spacing.min() < SMALLEST_SPACING or spacing.max() > LARGEST_SPACING:
        findings.append(
            Finding(
                "spacing",
                name,
                f"voxels of {millimetres(spacing)}",
                f"{SMALLEST_SPACING:g} to {LARGEST_SPACING:g} mm",
                "Are the sizes in another unit? Correct the header, or use --accept spacing",
            )
        )

    axes = geometry.affine[:3, :3] / spacing
    cosines = np.abs(axes.T @ axes - np.eye(3))
    if cosines.max() > LARGEST_COSINE:
        angle = np.degrees(np.arccos(min(1.0, cosines.max())))
        findings.append(
            Finding(
                "sheared",
                name,
                f"axes at an angle of {angle:.0f} degrees",
                "perpendicular axes; ITK does not read others",
                "Resample it (gantry tilt), or use --accept sheared",
            )
        )
    return findings
