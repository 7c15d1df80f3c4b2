"""The command line: ``python -m mutants [WORD…] [--table FILE]``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mutants.registry import MUTANTS, untested
from mutants.runner import run
from mutants.table import table


def main() -> int:
    """Run the mutants that the command line names, and write the table of what caught them.

    Returns:
        1 if one survived, if a requirement has none, or if a test fails without any.
    """
    parser = argparse.ArgumentParser(
        prog="nox -s mutants --", description="Try the suite on subjects with one defect each."
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="those whose defect, or one of whose ids, has this in it; default: all",
    )
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="write the table of all mutants to this file"
    )
    arguments = parser.parse_args()
    chosen = [
        it
        for it in MUTANTS
        if not arguments.words or any(word in " ".join((it.defect, *it.breaks)) for word in arguments.words)
    ]
    if not chosen:
        parser.error("no mutant is of that name")
    started = time.monotonic()
    found = run(chosen)
    survivors = [it for it in found.found if len(it.by) < len(it.mutant.breaks)]
    print(f"{len(chosen)} mutants, {len(survivors)} survived, {time.monotonic() - started:.0f} s")
    for name in found.spoiled:
        print(f"fails without any mutant: {name}")
    missing = [] if arguments.words else untested()
    for name in missing:
        print(f"has no mutant: {name}")
    if arguments.table:
        arguments.table.write_text(table(found.found), "utf-8")
    return int(bool(survivors or found.spoiled or missing))


if __name__ == "__main__":
    sys.exit(main())
