"""Summaries as text for a screen."""

from alice_nnunet.evaluation.organs import OrganSet
from alice_nnunet.evaluation.summary import MEAN, Difference, Spread

FEWEST = 6  # cases from which the two-sided Wilcoxon test can give p < 0.05: 2 / 2**6


def summary_table(title: str, summary: dict[str, dict[str, Spread]], organ_set: OrganSet) -> str:
    """DSC and NSD as mean +- std in percent, and how many cases count."""
    tolerances = {organ.name: f"{organ.tolerance:g}" for organ in organ_set.organs}
    rows = [
        [
            organ,
            tolerances.get(organ, ""),
            percent(row["dsc"]),
            percent(row["nsd"]),
            str(row["dsc"].n),
        ]
        for organ, row in summary.items()
    ]
    return title + "\n" + table(["organ", "tolerance, mm", "DSC, %", "NSD, %", "n"], rows)


def comparison_table(title: str, comparison: dict[str, dict[str, Difference]]) -> str:
    """First less second in points of percent, with Wilcoxon's p."""
    rows = [
        [
            organ,
            points(row["dsc"]),
            p_value(row["dsc"]),
            points(row["nsd"]),
            p_value(row["nsd"]),
            str(row["dsc"].n),
        ]
        for organ, row in comparison.items()
    ]
    few = (
        f"; with fewer than {FEWEST} cases it cannot be under 0.05"
        if comparison[MEAN]["dsc"].n < FEWEST
        else ""
    )
    return "\n".join(
        [
            title,
            table(["organ", "DSC, points", "p", "NSD, points", "p", "n"], rows),
            f"p: Wilcoxon signed-rank, two-sided, not corrected for several organs{few}",
        ]
    )


def percent(value: Spread) -> str:
    mean, std = (
        "-" if number is None else f"{100 * number:.2f}" for number in (value.mean, value.std)
    )
    return f"{mean:>6} +- {std:>5}"


def points(value: Difference) -> str:
    return "-" if value.mean is None else f"{100 * value.mean:+.2f}"


def p_value(value: Difference) -> str:
    return "-" if value.p is None else f"{value.p:.2g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as they need to be, the first to the left; a line above the last row, which is the mean."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:])),
            ]
        )
        for row in (header, *rows)
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
