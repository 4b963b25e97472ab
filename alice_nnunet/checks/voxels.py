"""Voxels of images: whether there is something to see, and whether CT is in HU."""

import hashlib
from collections.abc import Iterable

import numpy as np

from alice_nnunet.checks.findings import Decisions, Finding
from alice_nnunet.geometry import Spacing

Window = tuple[float, float]

AIR = -1024.0  # HU, of filled voxels
STEP = 2  # every second voxel along each axis is enough for shares
SHORTEST_BODY = 30.0  # mm; a scan whose body is shorter along an axis is a fragment

# Shares of the voxels of CT of living people, with much room on both sides
NARROWEST_RANGE = 200.0  # HU from the smallest to the largest value
FEWEST_NEGATIVE = 0.001  # below 0 HU: fat, lung and air
MOST_DENSE = 0.15  # above 700 HU: bone and metal
MOST_BELOW_AIR = 0.1  # below -1100 HU and not the smallest value, which is padding
FEWEST_TISSUE = 0.03  # -200 to 300 HU, fat and soft tissue, of the voxels that are not background
BACKGROUND = 200.0  # HU above the smallest value that still are background
DENSE = 700.0
BELOW_AIR = -1100.0
TISSUE = (-200.0, 300.0)


def check_channel(
    image: np.ndarray,
    window: Window | None,
    name: str,
    decisions: Decisions,
    is_fragment: bool = False,
) -> list[Finding]:
    """Check the voxels of one channel, and fill those that are not finite if the user wants it.

    Args:
        image: (Z, Y, X) float32, HU for CT; changed in place by --fill-nan.
        window: bottom and top in HU of the CT window, None for a channel that is not CT.
        name: of the file.
        is_fragment: whether the volume is too small to hold all tissues that CT shows.
        decisions: of the user.
    """
    findings = []
    low = image.min()
    high = image.max()

    if not (np.isfinite(low) and np.isfinite(high)):
        finding = nonfinite_finding(image, window, name, decisions)
        findings.append(finding)
        if finding.is_error:
            return findings
        low = image.min()
        high = image.max()

    problem = content_problem(float(low), float(high), window)
    if window and not problem and not is_fragment:
        problem = hounsfield_problem(image, float(low), float(high))
    if problem:
        findings.append(Finding(problem[0], name, *problem[1:]))
    return findings


def nonfinite_finding(
    image: np.ndarray, window: Window | None, name: str, decisions: Decisions
) -> Finding:
    """The finding on voxels that are not finite, which are filled if the user wants it."""
    finite = np.isfinite(image)
    broken = image.size - np.count_nonzero(finite)
    share = f"{100 * broken / image.size:.3g} %"
    found = f"{broken} of {image.size} voxels are not finite ({share})"

    if broken == image.size or not decisions.fill_nan:
        remedy = "Correct the file, or fill them with air: --fill-nan"
        return Finding("not-finite", name, found, "numbers in every voxel", remedy)

    air = AIR if window else float(image[finite].min())
    image[~finite] = air
    remedy = f"They were filled with {air:g} (--fill-nan)"
    return Finding("not-finite", name, found, remedy=remedy, severity="warning")


def content_problem(low: float, high: float, window: Window | None) -> tuple[str, ...] | None:
    """Kind and found, if there is nothing to see between the smallest and the largest value."""
    if window and high <= window[0]:
        return (
            "empty",
            f"nothing above {window[0]:g} HU, only air (the largest value is {high:g})",
        )
    if window and low >= window[1]:
        return (
            "empty",
            f"nothing below {window[1]:g} HU (the smallest value is {low:g}): not CT in HU",
        )
    if low == high:
        return "empty", f"empty: every voxel is {low:g}"
    return None


def hounsfield_problem(image: np.ndarray, low: float, high: float) -> tuple[str, ...] | None:
    """Why CT is probably not in HU, None if it may be.

    Air, fat, soft tissue and bone have their places on the scale, so values that were shifted
    (+1024), scaled (0..1, z-score, 8 bits) or inverted leave these places empty or overfull.
    """
    every = image[::STEP, ::STEP, ::STEP].ravel()
    negative = np.count_nonzero(every < 0) / every.size
    dense = np.count_nonzero(every > DENSE) / every.size
    below_fat = np.count_nonzero(every < TISSUE[0]) / every.size
    tissue = np.count_nonzero(every <= TISSUE[1]) / every.size - below_fat
    content = np.count_nonzero(every > low + BACKGROUND) / every.size

    below_air = np.count_nonzero(every < BELOW_AIR) / every.size if low < BELOW_AIR else 0.0
    if below_air:
        below_air -= np.count_nonzero(every == low) / every.size

    why = None
    if high - low < NARROWEST_RANGE:
        why = "the range is too narrow"
    elif negative < FEWEST_NEGATIVE:
        why = "hardly any voxel is negative, as fat and air are"
    elif dense > MOST_DENSE:
        why = f"{dense:.0%} of the voxels are above {DENSE:g}, as bone and metal are"
    elif below_air > MOST_BELOW_AIR:
        why = f"{below_air:.0%} of the voxels are between {low:g} and {BELOW_AIR:g}, below air"
    elif tissue < FEWEST_TISSUE * content:
        why = (
            f"only {tissue / content:.1%} of the voxels above the background are from "
            f"{TISSUE[0]:g} to {TISSUE[1]:g}, as tissue is"
        )

    if why is None:
        return None
    return (
        "not-hu",
        f"CT that does not look like HU: values from {low:g} to {high:g}, {below_fat:.0%} of the "
        f"voxels under {TISSUE[0]:g}; {why}",
        "HU: air near -1000, fat near -100, soft tissue near 40",
        "Convert the values to HU (apply the rescale slope and intercept), or use --accept not-hu",
    )


def check_extent(extent: Iterable[float], what: str, name: str) -> list[Finding]:
    """A finding if a volume or the body in it is too short along an axis.

    Args:
        extent: mm along each axis, (x, y, z).
        what: that is so large.
        name: of the file.
    """
    if min(extent) >= SHORTEST_BODY:
        return []
    size = " x ".join(f"{length:.0f}" for length in extent)
    return [
        Finding(
            "fragment",
            name,
            f"a fragment: {what} is {size} mm large",
            f"at least {SHORTEST_BODY:g} mm along each axis",
            "Leave it out, or keep it with --accept fragment",
        )
    ]


def content_digest(image: np.ndarray, spacing: Spacing) -> str:
    """A text that two volumes share only if they hold the same voxels.

    Args:
        image: (C, Z, Y, X) in the canonical orientation.
        spacing: mm, (z, y, x).
    """
    sample = np.ascontiguousarray(image[:, ::STEP, ::STEP, ::STEP])
    digest = hashlib.sha256(sample.tobytes())
    digest.update(repr((image.shape, [round(float(s), 3) for s in spacing])).encode())
    return digest.hexdigest()[:32]


def same_content(digests: dict[str, str]) -> dict[str, list[str]]:
    """Cases of equal content, by the first of them. digests: case -> content_digest."""
    groups: dict[str, list[str]] = {}
    for case, digest in sorted(digests.items()):
        groups.setdefault(digest, []).append(case)
    return {cases[0]: cases[1:] for cases in groups.values() if len(cases) > 1}
