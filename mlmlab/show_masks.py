"""python -m mlmlab.show_masks: a masking policy made visible on a text."""

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmlab import schema
from mlmlab.cli.arguments import Arguments
from mlmlab.cli.commands import as_command, invocation
from mlmlab.cli.compose import parsed_overrides
from mlmlab.data.tokenizer import Tokenizer, load_tokenizer
from mlmlab.errors import UserError
from mlmlab.fetch.hub import fetch_tokenizer
from mlmlab.masking import UNITS, Budget, Corrupt, MaskedBatch, MaskingConfig
from mlmlab.masking.policy import build_policy, mask_with_policy
from mlmlab.tracking.style import Style, styled

_WIDTH = 79
_EXAMPLES = """\
  %(prog)s "The quick brown fox jumps over the lazy dog." \\
      --tokenizer distilbert/distilroberta-base
  %(prog)s "unbelievably long words" --tokenizer DIR \\
      --unit word --rate 0.3 --epochs 3
  %(prog)s "$(cat my.txt)" --tokenizer RUN_DIR --unit span
  %(prog)s "a policy of your own" --tokenizer RUN_DIR \\
      --unit my_ideas:EveryOther --option share=0.2
"""
_MARKS = {
    # state: what is around the token without colours, its style, and its explanation
    "masked": ("[", "]", Style.MASKED, "replaced by the mask"),
    "random": ("{", "}", Style.RANDOM, "replaced by another token: old>new"),
    "kept": ("<", ">", Style.KEPT, "left as it is, and predicted all the same"),
    "protected": ("(", ")", Style.LABEL, "never selected"),
}


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Arguments(
        invocation("show_masks"), "Shows what a masking policy does to a text.", _EXAMPLES
    )
    parser.add_argument("text", metavar="TEXT", help="what to mask")
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help="a tokenizer's, checkpoint's or run's folder, or owner/name",
    )
    defaults = MaskingConfig()
    parser.add_argument(
        "--unit",
        default=defaults.unit,
        metavar="NAME",
        help=f"what is selected together: {', '.join(UNITS)}; or package.module:name, your own "
        "policy (%(default)s)",
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
        parser.add_argument(
            f"--{name}", choices=choices, default=default.value, help=f"{text} (%(default)s)"
        )
    for name, text in (
        ("rate", "share of the tokens that are predicted"),
        ("mask-fraction", "share of those that become the mask"),
        ("random-fraction", "share of those that become another token"),
    ):
        default_share = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}",
            type=float,
            default=default_share,
            metavar="X",
            help=f"{text} (%(default)s)",
        )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the masks (0)")
    parser.add_argument("--epochs", type=int, default=1, metavar="N", help="how many to show (1)")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"argument --epochs: {options.epochs}, but at least 1 is needed")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Masks the text and prints it, once for each epoch."""
    options = _arguments(arguments)
    config = MaskingConfig(
        rate=options.rate,
        unit=options.unit,
        options=parsed_overrides(options.option),
        corrupt=Corrupt(options.corrupt),
        budget=Budget(options.budget),
        mask_fraction=options.mask_fraction,
        random_fraction=options.random_fraction,
    )
    problems = list(schema.all_problems(config, config.path))
    if problems:
        raise UserError(problems)
    policy = build_policy(config)
    tokenizer = load_tokenizer(fetch_tokenizer(options.tokenizer)[0])
    ids = np.array([tokenizer.encode(options.text)])
    starts = np.array(tokenizer.word_starts_batch([options.text]))
    print(_legend(), end="\n\n")
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
        states = _states(ids[0], batch, tokenizer)
        head = f"epoch {epoch}: " if options.epochs > 1 else ""
        print(f"{head}{_counts(states)}\n{_marked(ids[0], batch, states, starts[0], tokenizer)}\n")


def _states(
    ids: NDArray[Any], batch: MaskedBatch[NDArray[Any]], tokenizer: Tokenizer
) -> list[str | None]:
    """What became of each token; None for one that was left alone."""
    protected = tokenizer.vocabulary().protected
    states: list[str | None] = ["protected" if protected[number] else None for number in ids]
    for place in batch.positions:
        shown = batch.input_ids[0, place]
        is_mask = shown == tokenizer.mask_id
        states[place] = "masked" if is_mask else "kept" if shown == ids[place] else "random"
    return states


def _legend() -> str:
    return "\n".join(
        f"{styled(f'{before}{state}{after}', style)} {text}"
        for state, (before, after, style, text) in _MARKS.items()
    )


def _counts(states: list[str | None]) -> str:
    tokens = sum(state != "protected" for state in states)
    counts = {state: states.count(state) for state in ("masked", "random", "kept")}
    selected = sum(counts.values())
    share = selected / tokens if tokens else 0.0
    named = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{selected} of {tokens} tokens selected ({share:.1%}): {named}"


def _marked(
    ids: NDArray[Any],
    batch: MaskedBatch[NDArray[Any]],
    states: list[str | None],
    starts: NDArray[np.bool_],
    tokenizer: Tokenizer,
) -> str:
    """The text in lines, each token with its mark; without spaces inside a word."""
    words: list[tuple[int, str]] = []  # printed width, and the text with its colours
    for place, state in enumerate(states):
        plain = _shown(ids[place], tokenizer)
        if state == "random":
            plain += f">{_shown(batch.input_ids[0, place], tokenizer)}"
        marked = plain
        if state is not None:
            before, after, style, _ = _MARKS[state]
            plain = f"{before}{plain}{after}"
            marked = styled(plain, style)
        if starts[place]:
            words.append((len(plain), marked))
        else:
            width, text = words.pop()
            words.append((width + len(plain), text + marked))
    lines: list[str] = []
    used = _WIDTH
    for width, text in words:
        if used + 1 + width > _WIDTH:
            lines.append(text)
            used = width
        else:
            lines[-1] += f" {text}"
            used += 1 + width
    return "\n".join(lines)


def _shown(number: int, tokenizer: Tokenizer) -> str:
    """A token as a person writes it: without the sign for a space before it, or for none."""
    return tokenizer.decode([int(number)], skip_special_tokens=False).strip().removeprefix("##")


def command() -> None:
    """The command as a process."""
    as_command(main)


if __name__ == "__main__":
    command()
