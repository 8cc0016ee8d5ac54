"""Words that are never the right ones, wherever a person reads: STYLE.md's rule 3, as far as it can
be checked."""

import re
from pathlib import Path

import pytest

import mlmlab

ROOT = Path(mlmlab.__file__).parents[1]
NEVER = {
    r"goes on|go on\b": "resumes, continues",
    r"anew": "again",
    r"of (its|their) own": "own, separate",
    r"one's own": "custom",
    r"so many": "N",
    r"whole number": "integer",
    r"the whole (run|step|batch|group|config|model|row)": "full, complete",
    r"the first process(?! to)": "rank 0",
    r"(it|that|which) (stands|lies)": "is",
    r"(left|leaves) behind": "writes",
    r"for ever\b(?!y)": "permanently",
    r"without a word": "without communication",
    r"(heads|rows|words?|lines?|bits|minutes) a (layer|token|mask|line|step|run|job)\b": "per",
    r"[0-9] %": "15%",
    r"1 (updates|steps|examples|jobs)\b": "1 step",
}
"""Each with what to write in its place."""
PLACES = ("mlmlab/**/*.py", "conf/**/*.yaml", "docs/*.md", "experiments/**/*.md", "benchmarks/*.md")


@pytest.mark.parametrize("words", NEVER)
def test_no_page_no_message_and_no_docstring_has_them(words: str) -> None:
    files = [file for place in PLACES for file in ROOT.glob(place)]
    files += [ROOT / "README.md", ROOT / "tests" / "messages.txt"]
    pattern = re.compile(rf"\b({words})" if words[0].isalpha() else words)
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line) and "small_world/grammar" not in str(file)
    ]
    assert found == [], f"write: {NEVER[words]}"


def test_the_patterns_find_what_they_are_for() -> None:
    line = "it goes on in a folder of its own with so many steps: 15 %"
    assert sum(bool(re.search(words, line)) for words in NEVER) == 4
