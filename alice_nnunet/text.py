"""How sizes, spacings and times are written in messages."""

from collections.abc import Iterable
from datetime import timedelta


def voxels(size: Iterable[float | str]) -> str:
    """A size as `96 x 96 x 96`; numbers that are already text stay as they are."""
    return " x ".join(n if isinstance(n, str) else f"{n:g}" for n in size)


def millimetres(spacing: Iterable[float]) -> str:
    """A spacing in mm as `1.5 x 0.76 x 0.76 mm`."""
    return " x ".join(f"{s:.3g}" for s in spacing) + " mm"


def duration(seconds: float) -> str:
    """3725.2 -> '1:02:05'."""
    return str(timedelta(seconds=round(seconds)))
