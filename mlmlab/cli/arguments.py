"""Options of the commands that Hydra does not compose."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from mlmlab.errors import Code, UserError


class Arguments(argparse.ArgumentParser):
    """Options in the usual style, whose mistakes end as all others do."""

    def __init__(self, prog: str, description: str, examples: str, group: str = "") -> None:
        """As argparse has it.

        Args:
            group: a group of config keys that the command takes, too: masking.rate=0.3.
        """
        self.group = group
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"examples\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse_args(  # type: ignore[override]  # no namespace to fill
        self, args: Sequence[str] | None = None
    ) -> argparse.Namespace:
        """As argparse does it, but for checkpoint=DIR, which is how Hydra's commands have it.

        Raises:
            UserError: whatever is wrong with the arguments.
        """
        given = sys.argv[1:] if args is None else args
        for argument in given:
            key, equals, value = argument.partition("=")
            option = f"--{key.rpartition('.')[2].replace('_', '-')}"
            is_taken = self.group and key.partition(".")[0] == self.group
            if equals and option in self._option_string_actions and not is_taken:
                raise UserError.of(
                    "the command line",
                    code=Code.SYNTAX,
                    found=argument,
                    expected=f"{option} and its value: this command has options, no keys",
                    remedy=f"{option} {value}",
                )
        return self.parse_intermixed_args(given)  # TEXT --option KEY=VALUE

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
