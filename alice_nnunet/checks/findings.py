"""What a check finds, and what the user may decide about it. Imports nothing that takes time."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

# Kinds of findings that --accept takes, and what accepting means.
ACCEPTABLE = {
    "not-hu": "use CT whose values do not look like HU",
    "fragment": "keep scans whose body is only a few centimetres large",
    "spacing": "use voxels under 0.05 mm or over 50 mm",
    "units": "take sizes in a header in metres or micrometres as mm",
    "sheared": "take axes that are not perpendicular as if they were",
    "channel-name": "keep the normalization of a channel whose name contains CT but is not CT",
}

# What --take takes: where the geometry comes from when a header leaves a choice.
TAKEABLE = {
    "sform": "the sform of headers whose two forms contradict each other",
    "qform": "the qform of headers whose two forms contradict each other",
    "as-stored": "axes without orientation as running to the right, front and head",
    "image-geometry": "the geometry of its image for a label",
    "3d": "the volume of labeled files that are 4D with one volume",
}


@dataclass(frozen=True)
class Finding:
    """Something in a file that is not as it should be.

    Attributes:
        kind: short name; of the findings that the user may accept, a key of ACCEPTABLE.
        file: name of the file.
        found: what was found, a phrase.
        expected: what was expected, a phrase.
        remedy: what the user can do, a sentence without full stop.
        severity: "error" if the file cannot be used as it is, "warning", or "note" for what may
            well be right.
    """

    kind: str
    file: str
    found: str
    expected: str = ""
    remedy: str = ""
    severity: str = "error"

    @property
    def is_error(self) -> bool:
        return self.severity == "error"

    @property
    def reason(self) -> str:
        """One line without the name of the file."""
        text = self.found
        if self.expected:
            text += f"; expected {self.expected}"
        if self.remedy:
            text += f". {self.remedy}"
        return text

    @property
    def text(self) -> str:
        """One line that begins with the name of the file."""
        return f"{self.file}: {self.reason}"

    def to_dict(self) -> dict:
        """Plain values, for a report in JSON."""
        return asdict(self)


class BadImage(ValueError):
    """An image that cannot be used. Its text holds the reasons of all errors.

    Attributes:
        findings: all of them, errors and warnings.
    """

    def __init__(self, findings: list[Finding], name_files: bool = False):
        errors = [finding for finding in findings if finding.is_error]
        super().__init__(". Also: ".join(e.text if name_files else e.reason for e in errors))
        self.findings = findings


@dataclass(frozen=True)
class Decisions:
    """What the user decides where a file leaves a choice.

    Attributes:
        take: keys of TAKEABLE.
        fill_nan: whether voxels that are not finite are filled with air.
        accept: keys of ACCEPTABLE.
    """

    take: frozenset[str] = field(default_factory=frozenset)
    fill_nan: bool = False
    accept: frozenset[str] = field(default_factory=frozenset)

    def to_dict(self) -> dict:
        """Plain values, for a report in JSON; empty where nothing was decided."""
        entries: dict[str, object] = {}
        if self.take:
            entries["take"] = sorted(self.take)
        if self.fill_nan:
            entries["fill_nan"] = True
        if self.accept:
            entries["accept"] = sorted(self.accept)
        return entries


NO_DECISIONS = Decisions()


def settled(findings: Iterable[Finding], decisions: Decisions) -> list[Finding]:
    """The findings, with errors that the user accepts as warnings."""
    result = []
    for finding in findings:
        if finding.is_error and finding.kind in decisions.accept:
            accepted = {**finding.to_dict(), "severity": "warning"}
            accepted["remedy"] = f"Used all the same (--accept {finding.kind})"
            finding = Finding(**accepted)
        result.append(finding)
    return result


def raise_errors(findings: list[Finding], name_files: bool = False) -> None:
    """Raise BadImage if one of the findings is an error."""
    if any(finding.is_error for finding in findings):
        raise BadImage(findings, name_files)
