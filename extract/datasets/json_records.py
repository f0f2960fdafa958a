"""Annotation files read as records: JSON, JSON lines or CSV, with the place that each error message names."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ...errors import ManifestError


@dataclass(frozen=True, slots=True)
class Record:
    """One annotation and where it stands: `avqa-test.json[12]` (the 13th of its list) or `clips.jsonl:13` (line)."""

    where: str
    values: Mapping[str, Any]

    def error(self, message: str) -> ManifestError:
        """Return the error whose one line begins with this record's place."""
        return ManifestError(f"{self.where}: {message}")

    def text(self, key: str, *, default: str | None = None) -> str:
        """Return a string field, stripped of nothing; `default` where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self.error(f"no {key!r} (found {_listing(self.values)})")
            return default
        if not isinstance(value, str):
            raise self.error(f"{key!r} is {_short(value)}, expected a string")
        return self._clean(key, value)

    def name(self, key: str, *, default: str | None = None) -> str:
        """Return a string field that is compared with others, as people mean it: without space around it, in NFC.

        Raises:
            ManifestError: it is absent and has no default, is no string, or holds nothing but space.
        """
        if self.values.get(key) is None and default is not None:
            return default
        found = unicodedata.normalize("NFC", self.text(key).strip())
        if not found:
            raise self.error(f"{key!r} is empty, expected a text")
        return found

    def strings(self, key: str) -> list[str]:
        """Return a list of strings, given as such or as a string of JSON (MUSIC-AVQA's own form); absent is empty."""
        value = self.values.get(key)
        if value is None:
            return []
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else []
            except (ValueError, RecursionError):
                raise self.error(f"{key!r} is {_short(value)}, expected a JSON list of strings") from None
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.error(f"{key!r} is {_short(value)}, expected a list of strings")
        return [self._clean(key, v) for v in value]

    def identifier(self, key: str) -> str | None:
        """Return an id given as a string or a whole number, as a string; None where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(f"{key!r} is {_short(value)}, expected a string or a whole number")
        return self._clean(key, str(value))

    def seconds(self, key: str) -> float | None:
        """Return a field that is a number, or in CSV one as text, to the microsecond; None where it is absent or null.

        Raises:
            ManifestError: it is no number.
        """
        value = self.values.get(key)
        if isinstance(value, str):
            try:
                return round(float(value), 6)
            except ValueError:
                pass
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return None if value is None else round(float(value), 6)
        raise self.error(f"{key!r} is {_short(value)}, expected seconds, such as 90 or 12.5")

    def flag(self, key: str) -> bool:
        """Return a field that is 0, 1, true, false or absent."""
        value = self.values.get(key)
        if value in (None, 0, 1):
            return bool(value)
        raise self.error(f"{key!r} is {_short(value)}, expected 0 or 1")

    def _clean(self, key: str, value: str) -> str:
        """Refuse what no file name and no tokenizer takes: NUL and lone surrogates."""
        if "\0" in value or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)):
            raise self.error(f"{key!r} is {_short(value)}, which holds characters that are not text")
        return value


def inside(record: Record, key: str, value: str, *, single: bool) -> str:
    """Return `value` as a relative path that stays in its folder, written with `/`.

    Args:
        record: whose error is raised.
        key: the field's name, for the message.
        value: an id or a relative path, with slashes of either kind between its parts.
        single: whether only one name, without any folder, will do.

    Returns:
        One spelling of all that mean the same: `/` between the parts, no `.` among them, none at the end, in Unicode's
        form NFC, no space around it.
    """
    plain = unicodedata.normalize("NFC", value.strip()).replace("\\", "/")
    path = PurePosixPath(plain)
    if path.is_absolute() or PureWindowsPath(value).drive or ".." in path.parts:
        raise record.error(f"{key!r} is {_short(value)}, which points outside the data set's root")
    if not path.parts or (single and "/" in plain):
        raise record.error(f"{key!r} is {_short(value)}, expected the name of a clip")
    return str(path)


def read_json_list(path: Path) -> list[Record]:
    """Return the records of a JSON file that is a list of objects.

    Raises:
        ManifestError: the file cannot be read or parsed (with its line), or an entry is not an object (with its place).
    """
    data = _parse(_read(path), str(path.name), first_line=1)
    if not isinstance(data, list):
        raise ManifestError(f"{path.name}: found {_short(data)}, expected a list of questions")
    return [_record(f"{path.name}[{i}]", value) for i, value in enumerate(data)]


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Return the lines of a text file that are not blank, each with its place.

    Raises:
        ManifestError: the file cannot be read as text.
    """
    lines = enumerate(_lines(_read(path)), start=1)
    return [(f"{path.name}:{n}", line) for n, line in lines if line.strip()]


def read_table(path: Path, *, columns: Sequence[str]) -> Iterator[Record]:
    """Yield the records of a JSON-lines file (one object a line) or of a CSV file with a header line.

    Args:
        path: the file; in CSV the fields may also have semicolons or tabs between them.
        columns: those that it may have.

    Raises:
        ManifestError: another ending than .jsonl or .csv, or a line that cannot be read.
    """
    text = _read(path)
    if path.suffix.lower() == ".csv":
        yield from _csv_records(path.name, text, columns)
        return
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise ManifestError(f"{path.name}: a manifest ends in .jsonl or .csv")
    for n, line in enumerate(_lines(text), start=1):
        if line.strip():
            yield _record(f"{path.name}:{n}", _parse(line, path.name, first_line=n))


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text without their ends, one at a time; other ends than a line feed are no ends."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _csv_records(name: str, text: str, columns: Sequence[str]) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, columns), strict=True)
    header: list[str] | None = None
    try:
        while True:
            where = f"{name}:{reader.line_num + 1}"  # where the row begins: a quoted field may hold line ends
            row = next(reader, None)
            if row is None:
                return
            if not row:
                continue
            if header is None:
                header = [cell.strip() for cell in row]
                twice = [cell for cell in header if header.count(cell) > 1]
                if twice:
                    raise ManifestError(f"{where}: the header names {_short(twice[0])} twice")
            elif len(row) != len(header):
                raise ManifestError(f"{where}: found {len(row)} fields, expected the header's {len(header)}")
            else:
                yield Record(where, {k: v for k, v in zip(header, row, strict=True) if v != ""})
    except csv.Error as error:
        raise ManifestError(f"{where}: not CSV: {error}") from None


def _delimiter(text: str, columns: Sequence[str]) -> str:
    """Return what stands between the fields: of comma, semicolon and tab the one that gives most known columns."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max(",;\t", key=lambda mark: len({cell.strip(' "') for cell in first.split(mark)} & set(columns)))


def _record(where: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: found {_short(value)}, expected an object")
    return Record(where, value)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{path}: not UTF-8 text (byte {error.start}) in line {line}; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror or error}") from None


def _parse(text: str, name: str, *, first_line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unlike_keys)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ManifestError(f"{name}: line {line}, column {error.colno}: not JSON: {error.msg}") from None
    except _KeyTwiceError as error:
        raise ManifestError(f"{name}: line {first_line}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{name}: line {first_line}: not JSON: {str(error).splitlines()[0]}") from None


class _KeyTwiceError(ValueError):
    pass


def _unlike_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _KeyTwiceError(f"the key {_short(twice)} stands twice in one object; expected it once")
    return found


def _listing(values: Mapping[str, Any]) -> str:
    names = [_short(k) for k in values]
    return ", ".join(names[:12]) or "an empty record"


def _short(value: Any) -> str:
    """Return a value for a one-line message: escaped, at most 60 characters."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
