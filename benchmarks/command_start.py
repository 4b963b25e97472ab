"""How long `alice-X -h` takes, as a multiple of `python -c "import argparse"`.

    python benchmarks/command_start.py [-repeats N]

Prints CPU seconds (user and system, the least of N calls, so that a busy machine disturbs little)
and the ratio. The target is at most 3.
"""

import argparse
import resource
import runpy
import subprocess
import sys
from pathlib import Path

COMMANDS = runpy.run_path(str(Path(__file__).parent.parent / "setup.py"))["COMMANDS"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how fast the commands print their help.")
    parser.add_argument("-repeats", type=int, default=10, metavar="N", help="default: 10")
    repeats = parser.parse_args().repeats

    baseline = least_cpu_seconds("import argparse", repeats)
    print(f"{'import argparse':20}{baseline:6.3f} s")

    for name, module in COMMANDS.items():
        # What the console script does.
        code = f"import sys; sys.argv = [{name!r}, '-h']; from {module} import main; main()"
        seconds = least_cpu_seconds(code, repeats)
        print(f"{name + ' -h':20}{seconds:6.3f} s{seconds / baseline:6.1f} times")


def least_cpu_seconds(code: str, repeats: int) -> float:
    """The least CPU seconds of several calls of `python -c code`."""
    return min(cpu_seconds(code) for _ in range(repeats))


def cpu_seconds(code: str) -> float:
    """User and system seconds of one call."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    main()
