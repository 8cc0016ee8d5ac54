"""python -m mlmlab: which commands there are."""

import difflib
import sys

import mlmlab
from mlmlab.cli.commands import COMMANDS, as_command, script
from mlmlab.errors import Code, UserError


def main() -> None:
    """Lists the commands.

    Raises:
        UserError: it is asked for anything else.
    """
    asked = sys.argv[1:]
    if asked and asked[0] not in ("--help", "-h"):
        closest = difflib.get_close_matches(asked[0].replace("-", "_"), COMMANDS, 1, cutoff=0.0)
        raise UserError.of(
            "the command line",
            code=Code.SYNTAX,
            found=" ".join(asked),
            expected="nothing: python -m mlmlab lists the commands",
            remedy=" ".join([f"python -m mlmlab.{closest[0]}", *asked[1:]]),
        )
    print(f"mlmlab {mlmlab.__version__}: masked language models in plain PyTorch\n")
    for name, what in COMMANDS.items():
        print(f"python -m mlmlab.{name}, or {script(name)}\n    {what}")
    print("\nEach of them has --help.")


if __name__ == "__main__":
    as_command(main)
