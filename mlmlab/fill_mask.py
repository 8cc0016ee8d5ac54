"""python -m mlmlab.fill_mask: the model's best tokens for each mask of a text."""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlmlab.cli.arguments import Arguments
from mlmlab.cli.commands import as_command, invocation
from mlmlab.errors import UserError
from mlmlab.tracking.style import Style, styled

if TYPE_CHECKING:
    from mlmlab.evaluation.fill_mask import Completion, FillMask

_BAR_WIDTH = 24
_EXAMPLES = """\
  %(prog)s --checkpoint distilbert/distilroberta-base \\
      "The Milky Way is a <mask> galaxy."
  %(prog)s --checkpoint runs/small_world/TIME --top-k 3 \\
      "the day after monday is <mask> ."
  %(prog)s --checkpoint DIR --targets " spiral, small" \\
      --json "..."
"""


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Arguments(
        invocation("fill_mask"), "Completes texts with a masked language model.", _EXAMPLES
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text with the mask token")
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help="a checkpoint's or a run's folder, or owner/name[@revision]",
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="answers a mask (5)")
    parser.add_argument(
        "--targets", metavar="A,B", help="rank only these tokens; spaces count, commas separate"
    )
    parser.add_argument("--json", action="store_true", help="one JSON value a text, for machines")
    parser.add_argument(
        "--interactive", action="store_true", help="read texts from the terminal until its end"
    )
    options = parser.parse_args(arguments)
    if options.top_k < 1:
        parser.error(f"argument --top-k: {options.top_k}, but at least 1 is needed")
    if not options.texts and not options.interactive:
        parser.error("a TEXT with the mask token, or --interactive, is needed")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Loads the model once and answers text by text."""
    options = _arguments(arguments)
    from mlmlab.checkpoints import load_pretrained  # a wrong option does not wait for PyTorch
    from mlmlab.evaluation.fill_mask import FillMask

    fill = FillMask(*load_pretrained(options.checkpoint, quiet=True))
    targets = None if options.targets is None else options.targets.split(",")
    for text in options.texts:
        _answer(fill, text, options.top_k, targets, options.json)
    if options.interactive:
        for text in _lines(fill.tokenizer.mask_token):
            try:
                _answer(fill, text, options.top_k, targets, options.json)
            except UserError as error:  # a typing mistake does not end the conversation
                print(error, file=sys.stderr)


def _lines(mask_token: str) -> Iterator[str]:
    print(f"A text with {mask_token}; an empty line ends.", file=sys.stderr)
    while True:
        try:
            text = input("> ")
        except EOFError:
            return
        if not text.strip():
            return
        yield text


def _answer(
    fill: "FillMask", text: str, top_k: int, targets: list[str] | None, as_json: bool
) -> None:
    if as_json:
        print(json.dumps(fill(text, top_k, targets), ensure_ascii=False))
        return
    [masks] = fill.complete([text], top_k, targets)
    print(text)
    for number, rows in enumerate(masks, 1):
        if len(masks) > 1:
            print(f"  mask {number}")
        for row in rows:
            print(_table_row(row))


def _table_row(answer: "Completion") -> str:
    """A probability, its bar, and the token."""
    filled = round(answer["score"] * _BAR_WIDTH)
    bar = styled("#" * filled, Style.GOOD) + "." * (_BAR_WIDTH - filled)
    return f"  {answer['score']:8.4f}  {bar}  {answer['token_str'].strip()}"


def command() -> None:
    """The command as a process."""
    as_command(main)


if __name__ == "__main__":
    command()
