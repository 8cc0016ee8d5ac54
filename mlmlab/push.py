"""python -m mlmlab.push: a run's export as a repository on the Hub."""

import argparse
from pathlib import Path

from mlmlab.cli.arguments import Arguments
from mlmlab.cli.commands import as_command, invocation

_DESCRIPTION = """\
Uploads a run's export to the Hub in one commit, with its model card, and prints
the URL. The repository is created if there is none. Log in first, with
`hf auth login` or a token in the environment variable HF_TOKEN.
"""
_EXAMPLES = """\
  %(prog)s runs/small_world/TIME owner/name --dry-run
  %(prog)s runs/small_world/TIME owner/name --private
  %(prog)s RUN_DIR/export owner/name --revision seed-1
"""


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Arguments(invocation("push"), _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "folder",
        metavar="RUN_OR_EXPORT_DIR",
        help="the folder of a finished run, or one in the Hub's layout",
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository on the Hub")
    parser.add_argument(
        "--private", action="store_true", help="create it as a private one (public)"
    )
    parser.add_argument(
        "--revision", metavar="NAME", help="a branch, created if there is none (main)"
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="send the run's TensorBoard files, too"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be sent, and send nothing"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Uploads the export and prints the repository's URL."""
    options = _arguments(arguments)
    from mlmlab.fetch.upload import Destination  # a wrong option does not wait for these
    from mlmlab.runs.push import Push

    to = Destination(options.repository, options.private, options.revision)
    push = Push.of(Path(options.folder), to, with_tensorboard=options.tensorboard)
    print(push.preview() if options.dry_run else push.send())


def command() -> None:
    """The command as a process."""
    as_command(main)


if __name__ == "__main__":
    command()
