"""python -m mlmlab.show_masks: a masking policy made visible on a text."""

import argparse

from mlmlab.cli.arguments import Arguments
from mlmlab.cli.commands import as_command, invocation
from mlmlab.cli.compose import compose, parsed_overrides
from mlmlab.masking import UNITS, MaskingConfig
from mlmlab.tracking.style import styled

_EXAMPLES = """\
  %(prog)s "The quick brown fox jumps over the lazy dog." \\
      --tokenizer distilbert/distilroberta-base
  %(prog)s "unbelievably long words" --tokenizer DIR \\
      --unit word --rate 0.3 --epochs 3
  %(prog)s "$(cat my.txt)" --tokenizer RUN_DIR masking=spanbert
  %(prog)s "a policy of your own" --tokenizer RUN_DIR \\
      --unit my_ideas:EveryOther --option share=0.2
"""


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Arguments(
        invocation("show_masks"),
        "Shows what a masking policy does to a text.",
        _EXAMPLES,
        group="masking",
    )
    parser.add_argument("text", metavar="TEXT", help="what to mask")
    parser.add_argument(
        "keys",
        nargs="*",
        metavar="masking.KEY=VALUE",
        help="keys as python -m mlmlab.train takes them, masking=GROUP among them",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help="a tokenizer's, checkpoint's or run's folder, or owner/name",
    )
    defaults = MaskingConfig()
    parser.add_argument(
        "--unit",
        metavar="NAME",
        help=f"what is selected together: {', '.join(UNITS)}; or package.module:name, your own "
        f"policy ({defaults.unit})",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of your own policy; may be repeated",
    )
    for name, default, text in (
        ("corrupt", defaults.corrupt, "mask / random / keep drawn for each of these"),
        ("budget", defaults.budget, "independent, or the same share in every text"),
    ):
        choices = [str(member.value) for member in type(default)]
        parser.add_argument(f"--{name}", choices=choices, help=f"{text} ({default.value})")
    for name, text in (
        ("rate", "share of the tokens that are predicted"),
        ("mask-fraction", "share of those that become the mask"),
        ("random-fraction", "share of those that become another token"),
    ):
        default_share = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, metavar="X", help=f"{text} ({default_share})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the masks (0)")
    parser.add_argument("--epochs", type=int, default=1, metavar="N", help="how many to show (1)")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"argument --epochs: {options.epochs}, but at least 1 is needed")
    for key in options.keys:
        if not key.startswith(("masking=", "masking.")):
            parser.error(f"{key}: one TEXT, in quotes, and keys that begin with masking")
    return options


def _masking(options: argparse.Namespace) -> MaskingConfig:
    """The policy that keys and options describe, composed as for a training."""
    names = ("unit", "corrupt", "budget", "rate", "mask_fraction", "random_fraction")
    given = {name: getattr(options, name) for name in names}
    overrides = [f"masking.{name}={value}" for name, value in given.items() if value is not None]
    parsed_overrides(options.option)  # refuses what is no NAME=VALUE
    own = [f"masking.options.{option}" for option in options.option]
    return compose(*options.keys, *overrides, *own).masking


def main(arguments: list[str] | None = None) -> None:
    """Masks the text and prints it, once for each epoch."""
    options = _arguments(arguments)
    config = _masking(options)
    # A wrong option waits for none of these.
    import numpy as np

    from mlmlab.data.tokenizer import load_tokenizer
    from mlmlab.fetch.hub import fetch_tokenizer
    from mlmlab.masking.policy import build_policy, mask_with_policy
    from mlmlab.tracking.masked_text import MaskedText, legend

    policy = build_policy(config)
    tokenizer = load_tokenizer(fetch_tokenizer(options.tokenizer)[0])
    ids = np.array([tokenizer.encode(options.text)])
    starts = np.array(tokenizer.word_starts_batch([options.text]))
    print(legend(styled), end="\n\n")
    for epoch in range(options.epochs):
        batch = mask_with_policy(
            policy,
            ids,
            example_ids=np.zeros(1, np.int64),
            epoch=epoch,
            seed=options.seed,
            config=config,
            vocabulary=tokenizer.vocabulary(),
            word_starts=starts,
        )
        text = MaskedText(ids[0], batch.input_ids[0], batch.positions, tokenizer)
        head = f"epoch {epoch}: " if options.epochs > 1 else ""
        print(f"{head}{text.counts()}\n{text.marked(styled)}\n")


def command() -> None:
    """The command as a process."""
    as_command(main)


if __name__ == "__main__":
    command()
