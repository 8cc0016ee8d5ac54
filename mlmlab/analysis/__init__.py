"""Finished runs -> tables, plots and tests of significance."""

from collections.abc import Sequence
from pathlib import Path

from mlmlab.analysis.runs import find_runs
from mlmlab.analysis.settings import comparisons
from mlmlab.analysis.table import full_table


def table(folders: Sequence[str | Path]) -> str:
    """The perplexity of each setting, mean ± standard error over its seeds, and a verdict: at most
    80 columns wide, without a final newline.

    Args:
        folders: a run's own, a sweep's, or any that has such folders in it.

    Raises:
        UserError: there is no such folder, no finished run in any of them, or a damaged one.
    """
    found = find_runs(folders)
    return full_table(found, comparisons(found.runs))
