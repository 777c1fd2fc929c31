"""`python -m kktorch.report RUN… [--out report.html]`."""

import argparse
import sys
from pathlib import Path

from kktorch._files import write_text
from kktorch.report import load, render


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kktorch.report",
        description="Writes one self-contained HTML page about runs of the program.",
        epilog="example: python -m kktorch.report runs/JapaneseVowels",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of an experiment, or of one (attention, seed) run of `kktorch train`",
    )
    parser.add_argument(
        "--out", type=Path, help="the page to write; default: report.html in the first RUN"
    )
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.runs[0] / "report.html"
    try:
        write_text(out, render([load(folder) for folder in arguments.runs]))
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
