"""The text of a row: a field, a field of a field, a list of texts."""

from typing import Any

from mlmlab.errors import Problem


class NoTextError(Exception):
    """A row that holds no text where it should."""

    def __init__(self, where: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(found)
        self.problem = Problem(where, found, expected, remedy)


def text_at(row: Any, field: str) -> str:
    """The text at a dotted path of a row; a list of texts is joined by spaces.

    A field whose own name has dots is found too, and a list of objects is descended into object
    by object.

    Raises:
        NoTextError: there is no such field, or it holds something else.
    """
    value = _descend(row, field, field)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    if not isinstance(value, str):
        fields = f" with {', '.join(map(str, value))}" if isinstance(value, dict) else ""
        raise NoTextError(
            "data.text_field",
            f"{field} is {_kind(value)}{fields}",
            "text, or a list of texts",
            "data.text_field=FIELD (dots descend into an object)",
        )
    return value


def _descend(value: Any, path: str, field: str) -> Any:
    if isinstance(value, dict) and path in value:
        return value[path]
    first, _, rest = path.partition(".")
    if not isinstance(value, dict) or first not in value or not rest:
        fields = ", ".join(map(str, value)) if isinstance(value, dict) else _kind(value)
        raise NoTextError(
            "data.text_field",
            f"no {field}, but: {fields}",
            "the field that holds the text; dots descend: answers.text",
            "data.text_field=FIELD",
        )
    inner = value[first]
    if isinstance(inner, list):
        return [_descend(item, rest, field) for item in inner]
    return _descend(inner, rest, field)


def check_characters(text: str, encoding: str) -> None:
    """Refuses a text with a byte that the encoding does not know, or with half a character.

    Raises:
        NoTextError: what stands there.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = text[error.start]
        byte = ord(character) - 0xDC00
        if 0x80 <= byte <= 0xFF:  # how `surrogateescape` marks what it could not decode
            raise NoTextError(
                "data.encoding",
                f"byte 0x{byte:02x} is not {encoding}",
                "the encoding that the file was written in",
                "data.encoding=latin-1 (or cp1252, utf-16, ...)",
            ) from error
        raise NoTextError(
            "data.text_field",
            f"half a character ({character!a}, a lone surrogate)",
            "text",
            "mend the row: whatever wrote it cut a character in two",
        ) from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", bytes: "bytes"}
    return "null" if value is None else names.get(type(value), "a number")
