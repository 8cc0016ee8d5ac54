"""How a command ends: 0 done, 1 the run failed, 2 the user's input is wrong, 130 interrupted, 141
nobody reads its output."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mlmlab.errors import FailedElsewhere, RunFailed, UserError
from mlmlab.tracking.style import Style, styled


@contextmanager
def exit_status() -> Iterator[None]:
    """Turns what went wrong inside into a message on stderr, with the rank where there are several,
    and the process's exit status.

    An error that is neither the user's nor the run's is our own defect and keeps its traceback.
    """
    try:
        yield
    except FailedElsewhere as error:
        sys.exit(error.status)
    except BrokenPipeError:  # ... | head: nobody reads any more
        sys.stderr.write("mlmlab: a pipe was closed: nobody reads the output any more\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more at its end
        sys.exit(128 + 13)
    except (UserError, RunFailed, KeyboardInterrupt) as error:
        sys.stdout.flush()
        is_alone = "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1"
        rank = "" if is_alone else f"[rank {os.environ['RANK']}] "
        head = styled("mlmlab:", Style.ERROR, sys.stderr)
        # One write for all of it: the processes of a run share stderr.
        sys.stderr.write(f"{head} {rank}{str(error) or 'interrupted'}\n")
        sys.stderr.flush()
        sys.exit(getattr(error, "status", 130))
