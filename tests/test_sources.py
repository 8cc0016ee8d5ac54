"""Files become documents; whatever cannot be read is named with file, row, reason and remedy."""

import csv
import gzip
import hashlib
import io
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refusal

from mlmlab.data import formats, json_file, sources
from mlmlab.data.config import DocumentUnit, OnBadRow
from mlmlab.data.formats import BadRows
from mlmlab.data.small_world.chain import small_world
from mlmlab.data.sources import FileSource, SmallWorldSource, matching_files
from mlmlab.errors import Code, UserError

ROWS: list[dict[str, Any]] = [
    {"text": "Plain text."},
    {"text": "ünïcödé — 日本語 🙂", "other": 1},
    {"text": 'quotes " and \\ and \n inside'},
    {"text": ""},
    {"text": "[a bracket], {a brace}"},
]
TEXTS: list[str] = [row["text"] for row in ROWS]
LINES = ["first line", "zweite Zeile: äöü", "трети ред"]

Write = Callable[[str, bytes], FileSource]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: bytes) -> FileSource:
        (tmp_path / name).write_bytes(content)
        return source(tmp_path / name)

    return write_file


def source(path: Path, field: str = "text", **changes: Any) -> FileSource:
    return FileSource((path,), field, description=str(path), **changes)


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def json_array(rows: list[Any]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def read(source: FileSource) -> list[str]:
    """All documents, asked for as a run does."""
    source.fingerprint()
    return list(source.documents())


def refused(source: FileSource, where: str, code: Code, *named: str) -> None:
    """Asserts how a source is refused; $ is its file."""
    where, *named = (text.replace("$", str(source.paths[0])) for text in (where, *named))
    with refusal(where, code, *named):
        read(source)


# What is read


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("suffix", "content", "documents"),
    [
        (".txt", "\n".join(LINES).encode(), LINES),
        (".jsonl", json_lines(ROWS), TEXTS),
        (".json", json_array(ROWS), TEXTS),
        (".json", json_lines(ROWS), TEXTS),
        (".jsonl", json_array(ROWS), TEXTS),
        ("", "\n".join(LINES).encode(), LINES),
    ],
)
def test_each_format_is_read_plain_or_gzipped(
    write: Write,
    suffix: str,
    content: bytes,
    documents: list[str],
    compress: Callable[[bytes], bytes],
) -> None:
    # Neither name says whether the file is compressed: its first bytes do.
    assert list(write(f"a{suffix}", compress(content)).documents()) == documents
    assert list(write(f"a{suffix}.gz", compress(content)).documents()) == documents


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_byte_order_mark_and_dos_line_ends_are_no_text(write: Write, name: str) -> None:
    rows: list[Any] = [{"text": line} for line in LINES]
    content = {
        "a.txt": "\n".join(LINES).encode(),
        "a.jsonl": json_lines(rows),
        "a.json": json_array(rows),
    }[name]
    marked = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")
    assert list(write(name, marked).documents()) == LINES


def test_lines_without_text_are_skipped_and_the_others_stripped(write: Write) -> None:
    assert list(write("a.txt", b"\n  one \n\n\t\ntwo\n").documents()) == ["one", "two"]
    lines = b'\n{"text": "one"}\n  \n{"text": " two "}\n\n'
    assert list(write("a.jsonl", lines).documents()) == ["one", " two "]


PROSE = b"\n The first\nparagraph. \n \t\n\nThe second.\n\n\nThe third\r\nhas\r\nthree lines.\n"
DOCUMENTS = {
    DocumentUnit.LINE: [
        "The first", "paragraph.", "The second.", "The third", "has", "three lines.",
    ],
    DocumentUnit.PARAGRAPH: ["The first paragraph.", "The second.", "The third has three lines."],
    DocumentUnit.FILE: [
        "The first\nparagraph. \n \t\n\nThe second.\n\n\nThe third\nhas\nthree lines."
    ],
}  # fmt: skip


@pytest.mark.parametrize("unit", DocumentUnit)
def test_a_document_of_a_text_file_is_a_line_a_paragraph_or_all_of_it(
    write: Write, unit: DocumentUnit
) -> None:
    for file in (write("a.txt", PROSE), write("a.txt.gz", gzip.compress(PROSE, mtime=0))):
        path = file.paths[0]
        assert read(source(path, document=unit)) == DOCUMENTS[unit]
        assert read(source(path, document=unit, limit=1)) == DOCUMENTS[unit][:1]
        assert source(path, document=unit).has_line_documents == (unit is DocumentUnit.LINE)
    two = FileSource((path, path), document=unit)
    assert list(two.documents()) == 2 * DOCUMENTS[unit]
    assert list(source(write("empty.txt", b" \n\n").paths[0], document=unit).documents()) == []


def test_a_bad_paragraph_is_left_out_as_a_bad_row_is(write: Write) -> None:
    file = write("a.txt", b"one\nline\n\ntw\xffo\nlines\n\nthree")
    skipping = source(file.paths[0], document=DocumentUnit.PARAGRAPH, on_bad_row=OnBadRow.SKIP)
    bad_rows = BadRows(OnBadRow.SKIP)
    assert list(skipping.documents(bad_rows)) == ["one line", "three"]
    assert bad_rows.count == 1
    assert bad_rows.first is not None
    assert "row 2" in bad_rows.first


@pytest.mark.parametrize("unit", DocumentUnit)
def test_in_the_other_formats_a_document_is_a_row(write: Write, unit: DocumentUnit) -> None:
    path = write("a.jsonl", json_lines(ROWS)).paths[0]
    assert list(source(path, document=unit).documents()) == TEXTS
    assert not source(path, document=unit).has_line_documents


def test_separators_of_unicode_do_not_end_a_line(write: Write) -> None:
    text = "one\u2028still one\x85and one\x0cstill"
    assert list(write("a.txt", f"{text}\ntwo".encode()).documents()) == [text, "two"]


def test_a_dotted_field_descends_and_a_list_is_joined_by_spaces(write: Write) -> None:
    path = write("a.json", json_array([{"answers": {"text": ["a b", "c"], "n": 1}}])).paths[0]
    assert list(source(path, "answers.text").documents()) == ["a b c"]


def test_the_limit_takes_the_first_documents_and_reads_no_further(write: Write) -> None:
    good = write("a.jsonl", json_lines(ROWS) + b"not json")
    assert list(source(good.paths[0], limit=3).documents()) == TEXTS[:3]


def test_other_encodings_are_read_by_name(write: Write) -> None:
    for encoding in ("latin-1", "utf-16", "cp1252"):
        content = "Zeile: äöü".encode(encoding)
        for file in (write("a.txt", content), write("a.txt.gz", gzip.compress(content, mtime=0))):
            assert list(source(file.paths[0], encoding=encoding).documents()) == ["Zeile: äöü"]


def test_the_documents_are_the_same_each_time(write: Write) -> None:
    file = write("a.json", json_array(ROWS))
    assert list(file.documents()) == list(file.documents())


objects = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), objects, max_size=3), max_size=6),
    chunk=st.integers(1, 64),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_a_json_array_is_the_same_wherever_the_chunks_end(
    tmp_path: Path, rows: list[Any], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "_CHUNK_CHARACTERS", chunk)
        numbered = formats.rows(
            path, formats.Format.JSON, "text", "utf-8", DocumentUnit.LINE, BadRows()
        )
        decoded = list(numbered)
    # The text of numbers, too: 1 is not 1.0, nor a decimal.
    assert repr([row for _, row in decoded]) == repr(json.loads(path.read_text(encoding="utf-8")))
    assert [number for number, _ in decoded] == list(range(1, len(rows) + 1))


def test_memory_holds_a_few_rows_of_a_json_array_and_not_the_file(write: Write) -> None:
    file = write("a.json", json_array([{"text": "x" * 100_000}] * 200))
    tracemalloc.start()
    assert sum(map(len, file.documents())) == 200 * 100_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12_000_000


@pytest.mark.parametrize(
    ("content", "where", "code"),
    [
        (b'{"text": "half \\ud83d"}', "data.text_field", Code.ENCODING),
        (b'{"text": "t\xffwo"}', "data.encoding", Code.ENCODING),
    ],
)
def test_a_character_that_is_none_makes_a_bad_row_of_a_json_array(
    write: Write, content: bytes, where: str, code: Code
) -> None:
    file = write("a.json", b'[{"text": "one"}, ' + content + b', {"text": "three"}]')
    refused(file, where, code, "$, row 2")
    assert list(source(file.paths[0], on_bad_row=OnBadRow.SKIP).documents()) == ["one", "three"]


# What is refused


def test_a_bad_json_line_is_named(write: Write) -> None:
    file = write("a.jsonl", b'{"text": "one"}\n\n{"text": "two}\n')
    refused(file, "$, row 3", Code.BAD_ROW, '"two}')


def test_a_damaged_row_of_a_json_array_is_named_without_reading_on(write: Write) -> None:
    start = b'[{"text": "one"}, {"text": two}, ' + b'{"text": "x"}, ' * 5000
    file = write("a.json", start + b"\xff is no text at all")
    refused(file, "$, row 2", Code.CORRUPT, ': , {"text": two}')


@pytest.mark.parametrize(
    ("content", "row"),
    [
        (b'[{"text": "one"}, {"text": "tw', 2),
        (b'[{"text": "one"}, ', 2),
        (b'[{"text": "one"}', 1),
        (b"[", 1),
    ],
)
def test_a_truncated_json_array_is_named(write: Write, content: bytes, row: int) -> None:
    refused(write("a.json", content), f"$, row {row}", Code.CORRUPT)


def test_text_behind_or_within_a_json_array_is_named(write: Write) -> None:
    for content, where in (
        (b'[{"text": "one"}] {"text": "two"}', "$, after row 1"),
        (b'[{"text": "one"} {"text": "two"}]', "$, row 2"),
        (b'[{"text": "one"}] [{"text": "two"}]', "$, after row 1"),
        (b'[{"text": "a\ttab"}]', "$, row 1"),
    ):
        refused(write("a.json", content), where, Code.CORRUPT)


def test_a_truncated_or_damaged_gzip_file_is_named(write: Write) -> None:
    whole = gzip.compress(json_array(ROWS * 100), mtime=0)
    for content in (whole[:-20], whole[:-8] + bytes(8), whole[:40] + b"xx" + whole[42:]):
        file = write("a.json.gz", content)
        with pytest.raises(UserError) as error:
            read(file)
        (problem,) = error.value.problems
        assert problem.where.startswith(str(file.paths[0]))  # and perhaps the last whole row
        assert problem.code is Code.CORRUPT


def test_another_encoding_is_named_with_the_place(write: Write) -> None:
    file = write("a.txt", b"one\n" * 5000 + "Zeile: äöü".encode("latin-1"))
    refused(
        file, "data.encoding", Code.ENCODING, "$, row 5001", "0xe4", "utf-8",
        "data.encoding=latin-1",
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-99", "rot13"])
def test_an_encoding_that_is_none_is_named(write: Write, encoding: str) -> None:
    file = write("a.txt", b"text")
    with refusal("data.encoding", Code.INVALID, encoding):
        list(source(file.paths[0], encoding=encoding).documents())


def test_a_missing_field_is_named_beside_those_that_are_there(write: Write) -> None:
    rows: list[Any] = [{"text": "a"}, {"title": "b", "answers": {"n": 1, "score": [2]}}]
    file = write("a.jsonl", json_lines(rows))
    refused(file, "data.text_field", Code.NO_TEXT, "$, row 2", "title, answers")
    rows = [{"answers": {"n": 1, "score": [2]}}]
    nested = source(write("b.jsonl", json_lines(rows)).paths[0], "answers.text")
    refused(nested, "data.text_field", Code.NO_TEXT, "$, row 1", "answers.text", "n, score")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (3, "number"),
        (True, "true or false"),
        ({"body": "x"}, "object with body"),
        (["x", 3], "list"),
    ],
)
def test_a_text_that_is_none_is_named(write: Write, value: Any, kind: str) -> None:
    file = write("a.jsonl", json_lines([{"text": "one"}, {"text": value}]))
    refused(file, "data.text_field", Code.NO_TEXT, "$, row 2", kind)


def test_a_row_that_is_no_object_is_named(write: Write) -> None:
    file = write("a.json", b'["a text", "two"]')
    refused(file, "data.text_field", Code.NO_TEXT, "$, row 1", "text")


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        ("a.txt", b"PK\x03\x04 and so on", "zip"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfd and so on", "zstd"),
        ("a.jsonl.bz2", b"BZh9 and so on", "bzip2"),
        ("a.parquet", b"a,b\n1,2\n", "parquet"),
        ("a.parquet.gz", gzip.compress(b"a,b\n1,2\n", mtime=0), "parquet"),
    ],
)
def test_a_format_that_is_not_read_is_not_taken_for_lines(
    write: Write, name: str, start: bytes, kind: str
) -> None:
    refused(write(name, start), "data.path", Code.UNSUPPORTED, "$: ", kind, ".jsonl")


def test_a_folder_or_nothing_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    refused(source(tmp_path), "data.path", Code.NOT_FOUND, "$", "data.path='$/*'")
    refused(source(tmp_path / "missing.txt"), "data.path", Code.NOT_FOUND, "$")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.json.gz"])
def test_an_empty_file_has_no_documents(write: Write, name: str) -> None:
    assert list(write(name, b"").documents()) == []


# Fingerprints, and the two real sources


def test_a_fingerprint_follows_content_and_settings_and_not_the_name(write: Write) -> None:
    first = write("a.jsonl", json_lines(ROWS))
    prints = {
        first.fingerprint(),
        write("b.jsonl", json_lines(ROWS[1:])).fingerprint(),
        source(first.paths[0], "other").fingerprint(),
        source(first.paths[0], encoding="latin-1").fingerprint(),
        source(first.paths[0], limit=2).fingerprint(),
        source(first.paths[0], document=DocumentUnit.FILE).fingerprint(),
        write("a.txt", json_lines(ROWS)).fingerprint(),
    }
    assert len(prints) == 7
    assert write("c.jsonl", json_lines(ROWS)).fingerprint() == first.fingerprint()


def test_a_text_fingerprint_follows_the_content_and_its_format_alone(write: Write) -> None:
    first, second = write("a.jsonl", json_lines(ROWS)), write("b.jsonl", json_lines(ROWS[1:]))
    same = {
        first.text_fingerprint(),
        write("c.jsonl", json_lines(ROWS)).text_fingerprint(),
        source(first.paths[0], "other").text_fingerprint(),
        source(first.paths[0], encoding="latin-1").text_fingerprint(),
        source(first.paths[0], limit=2).text_fingerprint(),
        source(first.paths[0], document=DocumentUnit.FILE).text_fingerprint(),
        source(first.paths[0], on_bad_row=OnBadRow.SKIP).text_fingerprint(),
    }
    assert len(same) == 1
    paths = (first.paths[0], second.paths[0])
    others = {
        second.text_fingerprint(),
        write("a.txt", json_lines(ROWS)).text_fingerprint(),
        FileSource(paths).text_fingerprint(),
        FileSource(paths[::-1]).text_fingerprint(),
        SmallWorldSource(5).text_fingerprint(),
    }
    assert len(others | same) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in others | same)
    assert SmallWorldSource(5).text_fingerprint() == SmallWorldSource(None).text_fingerprint()


def test_the_small_world_is_as_long_as_the_limit_says() -> None:
    documents = list(SmallWorldSource(5).documents())
    assert documents == list(small_world().documents(7, sources.SMALL_WORLD_SEED))[:5]
    assert SmallWorldSource(5).fingerprint() != SmallWorldSource(6).fingerprint()
    assert SmallWorldSource(None).count == sources.SMALL_WORLD_DOCUMENTS


def test_the_real_file_is_read_whole(shared_data: Path) -> None:
    path = shared_data / "eli5-category-validation-2.json.gz"
    content = path.read_bytes()
    published = "309b7d49de11494c7c7179980f710cbcb5c9a6ebed6f0a30fe2e02dca4f10009"
    assert hashlib.sha256(content).hexdigest() == published
    documents = list(source(path, "answers.text").documents())
    rows = json.loads(gzip.decompress(content))
    assert len(documents) == 2375
    assert documents == [" ".join(row["answers"]["text"]) for row in rows]


def test_half_a_character_is_named_by_its_row(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "whole"}\n{"text": "half \\ud83d"}\n')
    refused(source(file), "data.text_field", Code.ENCODING, "$, row 2", "\\ud83d")


# Tables


def csv_of(rows: list[tuple[str, ...]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode()


TABLE = [("n", "text", "polarity"), *((str(n), text, "0") for n, text in enumerate(TEXTS))]


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_the_named_column_of_a_csv_is_read_whatever_separates_its_columns(
    write: Write, name: str, mark: str, compress: Callable[[bytes], bytes]
) -> None:
    assert list(write(name, compress(csv_of(TABLE, mark))).documents()) == TEXTS


def test_a_csv_is_read_in_any_encoding(write: Write) -> None:
    # The published IMDb table of the TPU recipe is ISO-8859-1.
    content = 'row,text\n0,"Café, said he ""quoted"""\n'.encode("iso-8859-1")
    file = write("a.csv", content)
    assert list(source(file.paths[0], encoding="iso-8859-1").documents()) == [
        'Café, said he "quoted"'
    ]
    refused(file, "data.encoding", Code.ENCODING, "$, row 1", "0xe9", "utf-8")


def test_a_very_long_csv_field_is_read(write: Write) -> None:
    text = "word " * 100_000
    assert list(write("a.csv", csv_of([("text",), (text,)])).documents()) == [text]


def test_a_csv_without_the_column_names_those_it_has(write: Write) -> None:
    file = write("a.csv", csv_of([("label", "review"), ("0", "good")]))
    refused(file, "data.text_field", Code.NO_TEXT, "$", "label, review")
    refused(write("b.csv", b""), "data.text_field", Code.NO_TEXT, "$", "none")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"n,text\n0,one\n1,two, three\n", "3 fields"),
        (b"n,text\n0,one\n1\n", "1 fields"),
        (b'n,text\n0,one\n1,"two\n', "unexpected end of data"),
        (b'n,text\n0,one\n1,"two" three\n', "expected after"),
    ],
)
def test_a_bad_csv_row_is_named(write: Write, content: bytes, found: str) -> None:
    refused(write("a.csv", content), "$, row 2", Code.BAD_ROW, found, "2 fields")


def parquet_of(columns: dict[str, list[Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=2)
    return file.getvalue()


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["a.parquet", "a.bin"])
def test_a_parquet_file_is_known_by_its_content(
    write: Write, name: str, compress: Callable[[bytes], bytes]
) -> None:
    content = parquet_of({"label": list(range(len(TEXTS))), "text": TEXTS})
    assert list(write(name, compress(content)).documents()) == TEXTS


def test_nested_columns_of_a_parquet_file_are_descended_into(write: Write) -> None:
    structs = write("a.parquet", parquet_of({"answers": [{"text": ["a", "b"], "n": 1}]}))
    assert list(source(structs.paths[0], "answers.text").documents()) == ["a b"]
    lists = write("b.parquet", parquet_of({"answers": [[{"text": "a"}, {"text": "b"}]]}))
    assert list(source(lists.paths[0], "answers.text").documents()) == ["a b"]
    dotted = write("c.parquet", parquet_of({"answers.text": ["a b"]}))
    assert list(source(dotted.paths[0], "answers.text").documents()) == ["a b"]


def test_a_parquet_file_without_the_column_or_text_is_named(write: Write) -> None:
    for columns, named in (
        ({"review": ["good"], "label": [1]}, ("$", "review, label")),
        ({"text": ["good", None]}, ("$, row 2", "null")),
        ({"text": [b"good"]}, ("$, row 1", "bytes")),
    ):
        file = write("a.parquet", parquet_of(columns))
        refused(file, "data.text_field", Code.NO_TEXT, *named)


def test_a_truncated_parquet_file_is_named(write: Write) -> None:
    content = parquet_of({"text": TEXTS})
    refused(write("a.parquet", content[:-30]), "$", Code.CORRUPT, "parquet")


# Many files


def test_a_glob_takes_its_files_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep/er").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "c.jsonl", "deep/er/d.txt"):
        Path(name).write_text(f'{{"text": "{name}"}}' if name.endswith("jsonl") else name)
    assert [str(path) for path in matching_files("*.txt", "data.path")] == ["a.txt", "b.txt"]
    assert len(matching_files("**/*.txt", "data.path")) == 3
    files = matching_files("[a-c].*", "data.path")
    together = FileSource(files)
    assert list(together.documents()) == ["a.txt", "b.txt", "c.jsonl"]
    limited = FileSource(files, limit=2)
    assert list(limited.documents()) == ["a.txt", "b.txt"]
    first = FileSource(files[:1])
    assert len({together.fingerprint(), limited.fingerprint(), first.fingerprint()}) == 3


def test_a_name_with_the_signs_of_a_glob_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text[1].txt", "text1.txt"):
        Path(name).write_text(name)
    assert [path.name for path in matching_files("text[1].txt", "data.path")] == ["text[1].txt"]


def test_a_glob_without_a_match_is_named(tmp_path: Path) -> None:
    with refusal("data.eval_path", Code.NOT_FOUND, tmp_path / "*.txt", "data.eval_path="):
        matching_files(str(tmp_path / "*.txt"), "data.eval_path")


# Bad rows


@pytest.mark.parametrize(
    ("name", "content", "documents", "where", "code"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": tw\n{"text": "x"}', ["one", "x"], "$, row 2",
         Code.BAD_ROW),
        ("a.jsonl", b'{"text": "one"}\n{"n": ' + b"9" * 5000 + b"}\n", ["one"], "$, row 2",
         Code.BAD_ROW),
        ("a.jsonl", b'{"text": "one"}\n' + b"[" * 100_000 + b"\n", ["one"], "$, row 2",
         Code.BAD_ROW),
        ("a.jsonl", b'{"text": "one"}\n{"body": "two"}\n', ["one"], "data.text_field",
         Code.NO_TEXT),
        ("a.json", b'[{"text": "one"}, {"text": 2}]', ["one"], "data.text_field", Code.NO_TEXT),
        ("a.csv", b'n,text\n0,one\n1,two, three\n2,"four"x\n3,five\n', ["one", "five"],
         "$, row 2", Code.BAD_ROW),
        ("a.txt", b"one\ntw\xffo\nthree", ["one", "three"], "data.encoding", Code.ENCODING),
        ("a.parquet", parquet_of({"text": ["one", None]}), ["one"], "data.text_field",
         Code.NO_TEXT),
    ],
)  # fmt: skip
def test_bad_rows_stop_the_reading_or_are_counted_and_left_out(
    write: Write, name: str, content: bytes, documents: list[str], where: str, code: Code
) -> None:
    file = write(name, content)
    refused(file, where, code, "data.on_bad_row=skip")
    skipping = source(file.paths[0], on_bad_row=OnBadRow.SKIP)
    bad_rows = BadRows(OnBadRow.SKIP)
    assert list(skipping.documents(bad_rows)) == documents
    assert list(skipping.documents()) == documents
    assert bad_rows.count == (2 if name == "a.csv" else 1)
    assert bad_rows.first is not None
    assert f"{file.paths[0]}, row 2" in bad_rows.first
    assert skipping.fingerprint() != file.fingerprint()


def test_a_file_that_is_damaged_as_a_whole_stops_even_where_bad_rows_are_left_out(
    write: Write,
) -> None:
    whole = gzip.compress(json_lines(ROWS * 100), mtime=0)
    for name, content in (
        ("a.json.gz", whole[:-20]),
        ("b.json", b'[{"text": "one"}, {"te'),
        ("c.json", b'[{"n": ' + b"9" * 5000 + b"}]"),
        ("d.json", b"[" * 100_000),
    ):
        file = source(write(name, content).paths[0], on_bad_row=OnBadRow.SKIP)
        with pytest.raises(UserError) as error:
            list(file.documents())
        assert [problem.code for problem in error.value.problems] == [Code.CORRUPT]
