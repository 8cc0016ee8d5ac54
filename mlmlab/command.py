"""How a command ends: 0 done, 1 the run failed, 2 the user's input is wrong, 130 interrupted."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from mlmlab.composition import composition_error
from mlmlab.errors import FailedElsewhere, Interrupted, ProcessFailed, RunFailed, UserError
from mlmlab.style import Style, styled


class Arguments(argparse.ArgumentParser):
    """Options in the usual style, whose mistakes end as all others do."""

    def __init__(self, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"examples\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raises `UserError` in place of exiting.

        Args:
            message: argparse's own words.
        """
        raise UserError.of(
            "the command line",
            found=message,
            expected=" ".join(self.format_usage().split()).removeprefix("usage: "),
            remedy=f"{self.prog} --help shows examples",
        )


def as_command(main: Callable[[], object]) -> NoReturn:
    """Runs a Hydra main as a process: one message and a status in place of a traceback.

    An error that is neither the user's nor the run's is a defect of ours and keeps its traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits before we see its errors
    with exit_status():
        main()
    sys.exit(0)


@contextmanager
def exit_status() -> Iterator[None]:
    """Turns what went wrong inside into a message on stderr and the process's exit status."""
    try:
        yield
    except UserError as error:
        _end(str(error), 2)
    except RunFailed as error:
        _end(str(error), 1)
    except Interrupted as error:
        _end(str(error), error.status)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except FailedElsewhere as error:
        _end("", error.status)
    except ProcessFailed as error:
        sys.exit(error.status)
    except Exception as error:
        explained = composition_error(error, sys.argv[1:])
        if explained is None:
            raise
        _end(str(explained), 2)


def _end(message: str, status: int) -> NoReturn:
    sys.stdout.flush()
    if "RANK" in os.environ:  # one of torchrun's processes, of which one speaks
        from mlmlab import processes

        if not message:
            processes.wait_until_told()
        elif processes.is_first_to_tell():
            _print(message)
            processes.has_told()
    else:
        _print(message)
    sys.exit(status)


def _print(message: str) -> None:
    print(f"{styled('mlmlab:', Style.ERROR, sys.stderr)} {message}", file=sys.stderr)
    sys.stderr.flush()
