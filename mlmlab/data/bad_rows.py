"""What becomes of a row that cannot be read: it stops the run, or it is counted and left out."""

from mlmlab.data.config import OnBadRow
from mlmlab.errors import Problem, UserError


class BadRows:
    """The bad rows of one reading."""

    def __init__(self, policy: OnBadRow = OnBadRow.STOP) -> None:
        self.policy = policy
        self.count = 0
        self.first: str | None = None
        """The first one: where it is and what is wrong with it."""

    def add(self, where: str, *, found: str, expected: str, remedy: str) -> None:
        """One more of them.

        Raises:
            UserError: the policy is to stop.
        """
        if self.policy is OnBadRow.STOP:
            remedy += "; data.on_bad_row=skip leaves such rows out and counts them"
            raise UserError([Problem(where, found, expected, remedy)])
        self.count += 1
        self.first = self.first or f"{where}: {found}"
