"""How a command ends: 0 done, 1 the run failed, 2 the user's input is wrong, 130 interrupted."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from mlmlab.errors import FailedElsewhere, Interrupted, ProcessFailed, RunFailed, UserError
from mlmlab.tracking.style import Style, styled






@contextmanager
def exit_status() -> Iterator[None]:
    """Turns what went wrong inside into a message on stderr and the process's exit status.

    An error that is neither the user's nor the run's is a defect of ours and keeps its traceback.
    """
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


def _end(message: str, status: int) -> NoReturn:
    sys.stdout.flush()
    if "RANK" in os.environ:  # one of torchrun's processes, of which one speaks
        from mlmlab.runtime import distributed

        if not message:
            distributed.wait_until_told()
        elif distributed.is_first_to_tell():
            _print(message)
            distributed.has_told()
    else:
        _print(message)
    sys.exit(status)


def _print(message: str) -> None:
    print(f"{styled('mlmlab:', Style.ERROR, sys.stderr)} {message}", file=sys.stderr)
    sys.stderr.flush()
