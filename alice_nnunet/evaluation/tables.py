"""Summaries as text for a screen."""

from alice_nnunet.evaluation.organs import OrganSet
from alice_nnunet.evaluation.summary import MEAN, Difference, Spread

# The two-sided Wilcoxon test of fewer cases cannot give p < 0.05: its smallest p is 2 / 2**n.
FEWEST_CASES = 6


def summary_table(title: str, summary: dict[str, dict[str, Spread]], organ_set: OrganSet) -> str:
    """DSC and NSD as mean +- std in percent, and the number of cases that count."""
    tolerances = {organ.name: f"{organ.tolerance:g}" for organ in organ_set.organs}
    header = ["organ", "tolerance, mm", "DSC, %", "NSD, %", "n"]
    rows = []
    for organ, row in summary.items():
        dsc = row["dsc"]
        rows.append(
            [organ, tolerances.get(organ, ""), percent(dsc), percent(row["nsd"]), str(dsc.n)]
        )
    return title + "\n" + table(header, rows)


def comparison_table(title: str, comparison: dict[str, dict[str, Difference]]) -> str:
    """First less second in percentage points, with Wilcoxon's p."""
    header = ["organ", "DSC, points", "p", "NSD, points", "p", "n"]
    rows = []
    for organ, row in comparison.items():
        dsc = row["dsc"]
        nsd = row["nsd"]
        rows.append([organ, points(dsc), p_value(dsc), points(nsd), p_value(nsd), str(dsc.n)])

    note = "p: Wilcoxon signed-rank, two-sided, not corrected for several organs"
    if comparison[MEAN]["dsc"].n < FEWEST_CASES:
        note += f"; with fewer than {FEWEST_CASES} cases it cannot be under 0.05"
    return "\n".join([title, table(header, rows), note])


def percent(value: Spread) -> str:
    mean = "-" if value.mean is None else f"{100 * value.mean:.2f}"
    std = "-" if value.std is None else f"{100 * value.std:.2f}"
    return f"{mean:>6} +- {std:>5}"


def points(value: Difference) -> str:
    return "-" if value.mean is None else f"{100 * value.mean:+.2f}"


def p_value(value: Difference) -> str:
    return "-" if value.p is None else f"{value.p:.2g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as needed, the first aligned left; a rule above the last row, the mean."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = []
    for first, *others in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))

    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
