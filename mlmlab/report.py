"""python -m mlmlab.report: finished runs compared."""

import argparse

from mlmlab.cli.arguments import Arguments
from mlmlab.cli.commands import as_command, invocation
from mlmlab.cli.compose import parsed_overrides

_DESCRIPTION = """\
Compares finished runs: which setting won, by how much, and how sure that is.

Prints a table of test perplexities, mean ± standard error over seeds, grouped
by the keys that vary; and writes report.html (one page, with its plots),
report.md, report.csv (a row for each run) and the plots. Runs whose figures do
not compare, because test text or masks differ, are in separate tables.
"""
_EXAMPLES = """\
  %(prog)s runs/small_world/sweep-TIME
  %(prog)s runs/small_world/sweep-TIME --baseline masking.rate=0.15
  %(prog)s RUN_DIR RUN_DIR RUN_DIR --out my-report
  python -m mlmlab.evaluate -m checkpoint=DIR,DIR data.path=my.txt out=scores
  %(prog)s scores
"""


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Arguments(invocation("report"), _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="RUNS_DIR",
        help="the folder of a run, of a sweep, of an evaluation (evaluate's out=DIR), or one that "
        "holds such folders",
    )
    parser.add_argument("--out", metavar="DIR", help="where to write (the first RUNS_DIR)")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="the setting that the others are compared with, in place of the best one; may be "
        "repeated",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Writes the report, and prints its tables."""
    options = _arguments(arguments)
    baseline = parsed_overrides(options.baseline)
    from mlmlab.analysis.report import write_report  # a wrong option does not wait for it

    print(write_report(options.folders, options.out, baseline))


def command() -> None:
    """The command as a process."""
    as_command(main)


if __name__ == "__main__":
    command()
