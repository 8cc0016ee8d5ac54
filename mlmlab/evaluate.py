"""python -m mlmlab.evaluate: masked perplexity and accuracy of a checkpoint on some text."""

import json
import sys

from mlmlab.command import exit_status
from mlmlab.composition import compose_evaluation, config_folder

_HELP = """python -m mlmlab.evaluate checkpoint=DIR_OR_HUB_ID [key=value] ...

Scores a masked language model: perplexity with its standard error, and the
accuracy of its guesses. The last line printed is JSON.

A run's folder is scored on the run's own test documents with the run's own
masks: the same bits as its last evaluation. Text that you name is scored
whole, to its last token.

Examples
  python -m mlmlab.evaluate checkpoint=runs/world/TIME
  python -m mlmlab.evaluate checkpoint=runs/world/TIME eval.mask_draws=10
  python -m mlmlab.evaluate checkpoint=distilbert/distilroberta-base \\
      data.path=my.txt
  python -m mlmlab.evaluate checkpoint=DIR data.source=hub \\
      data.repository=stanfordnlp/imdb data.files='plain_text/test-*.parquet'

Keys
"""


def main(arguments: list[str] | None = None) -> None:
    """Composes the config, scores, and prints."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments):
        print(_HELP + _keys())
        return
    config = compose_evaluation(*arguments)
    from mlmlab.evaluating import evaluate_checkpoint  # a wrong key need not wait for PyTorch

    print(json.dumps(evaluate_checkpoint(config).to_mapping()))


def _keys() -> str:
    """The YAML of the keys, with its comments."""
    folder = config_folder()
    files = (folder / "evaluate.yaml", folder / "data" / "text.yaml", folder / "masking/bert.yaml",
             folder / "runtime/auto.yaml")  # fmt: skip
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


if __name__ == "__main__":
    with exit_status():
        main()
