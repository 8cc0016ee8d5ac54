"""python -m mlmlab.evaluate: masked perplexity and accuracy of a checkpoint on some text."""

import json
import os
import sys

from omegaconf import OmegaConf

from mlmlab.cli.commands import (
    EVALUATE,
    as_command,
    config_folder,
    in_eighty_columns,
    invocation,
)
from mlmlab.cli.compose import compose_evaluation, composed
from mlmlab.runs import evaluate_checkpoint

_HELP = """%(prog)s checkpoint=DIR_OR_HUB_ID [key=value] ...

Scores a masked language model: perplexity with its standard error, and the
accuracy of its guesses. The last line printed is JSON.

A run's folder is scored on the run's own test documents with the run's own
masks: the same bits as its last evaluation. Text that you name is scored
whole, to its last token. Several processes, torchrun's or this command's own
(runtime.processes=N), share the text and find the same figures. out=DIR keeps
the result, for mlmlab.report to compare with others.

Examples
  %(prog)s checkpoint=runs/small_world/TIME
  %(prog)s checkpoint=runs/small_world/TIME eval.mask_draws=10
  %(prog)s checkpoint=distilbert/distilroberta-base \\
      data.path=my.txt
  %(prog)s checkpoint=DIR data.source=hub \\
      data.repository=stanfordnlp/imdb data.files='plain_text/test-*.parquet'

Groups and their options (group=option)
"""


def main(arguments: list[str] | None = None) -> None:
    """Composes the config, scores, and prints."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments):
        print(in_eighty_columns(_HELP % {"prog": invocation("evaluate")} + _keys()))
        return
    report = evaluate_checkpoint(compose_evaluation(*arguments))
    if os.environ.get("RANK", "0") == "0":  # under torchrun
        print(json.dumps(report.to_mapping()))


def _keys() -> str:
    """The groups, and the default config."""
    groups = "".join(
        f"{group}: {', '.join(sorted(file.stem for file in (config_folder() / group).iterdir()))}\n"
        for group in ("data", "masking", "runtime")
    )
    keys = OmegaConf.to_yaml(OmegaConf.create(composed(EVALUATE)))
    return f"{groups}\nKeys and their values (key=value)\n{keys}"


def command() -> None:
    """The command as a process."""
    as_command(main)


if __name__ == "__main__":
    command()
