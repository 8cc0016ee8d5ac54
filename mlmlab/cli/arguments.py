"""Options of the commands that Hydra does not compose."""

import argparse
from typing import NoReturn

from mlmlab.errors import Code, UserError


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
            code=Code.SYNTAX,
            found=message,
            expected=" ".join(self.format_usage().split()).removeprefix("usage: "),
            remedy=f"{self.prog} --help shows examples",
        )
