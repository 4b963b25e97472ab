"""Channels: one grid for all of a case, and names that say which of them are CT."""

import re

from alice_nnunet.checks.findings import Finding
from alice_nnunet.checks.header import Geometry, corner_distance, is_same_grid

CT = "ct"  # nnU-Net's name, in any case, for channels in HU
NAMES_OF_CT = frozenset(
    ["ct", "cta", "ctp", "ctv", "cte", "ctu", "ctac", "cbct", "fbct", "ncct", "cect", "nect"]
).union(["ldct", "hdct", "hrct", "dect", "mdct", "msct", "mvct", "kvct", "qct", "cct", "pct"])


def is_ct(channel: str) -> bool:
    """Whether nnU-Net treats a channel of this name as CT in HU."""
    return channel.casefold() == CT


def check_channel_names(names: dict[str, str]) -> list[Finding]:
    """A finding for each channel whose name contains CT, which nnU-Net does not treat as CT.

    Args:
        names: channel_names of dataset.json.
    """
    findings = []
    for number, name in names.items():
        words = re.findall(r"[a-z]+", name.casefold())
        described = "hounsfield" in words or "computed tomography" in " ".join(words)
        if is_ct(name) or not (described or NAMES_OF_CT.intersection(words)):
            continue
        findings.append(
            Finding(
                "channel-name",
                "dataset.json",
                f'channel {number} is called "{name}"',
                'exactly "CT" for CT in HU; nnU-Net normalises channels of all other names by the '
                "mean and spread of each scan (z-score)",
                f'Is it CT in HU? Then write "channel_names": {{"{number}": "CT"}}. If it is not, '
                "use --accept channel-name",
            )
        )
    return findings


def channels_text(names: dict[str, str]) -> str:
    """Which channels are CT, as one line."""
    kinds = [
        f'{number} "{name}" {"is CT in HU" if is_ct(name) else "is not CT"}'
        for number, name in names.items()
    ]
    return f"channels: {', '.join(kinds)}"


def check_same_grid(geometries: dict[str, Geometry]) -> list[Finding]:
    """A finding for each channel that lies on another grid than the first, after reorientation.

    Args:
        geometries: of the files of one case, by name.
    """
    (first_name, first), *others = geometries.items()
    first = first.reoriented()

    findings = []
    for name, geometry in others:
        other = geometry.reoriented()
        if other.shape == first.shape and is_same_grid(other, first):
            continue

        found = f"lies on another grid than {first_name}: size {other.shape} and {first.shape}"
        if other.shape == first.shape:
            apart = corner_distance(other, first)
            found = f"lies on another grid than {first_name}: corners up to {apart:.3g} mm apart"
        findings.append(
            Finding(
                "channel-grid",
                name,
                found,
                "one grid for all channels of a case",
                "Resample it to the grid of the first channel",
            )
        )
    return findings
