"""Rows of a table from wherever it lies: a file, a folder that `datasets` saved, the Hugging Face hub.

Files may come from anybody. Whatever is wrong with one is a TaskError that names the file, the line and the reason.
"""

import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rlswarm_jax import assets
from rlswarm_jax.tasks.base import TaskError
from rlswarm_jax.tasks.cells import Written

MAX_LINE = 1_000_000  # bytes
MAX_JSON = 1_000_000_000  # bytes of a .json file, which is parsed as a whole
EMBEDDED = "embedded:"
NARROW: Mapping[str, type[np.floating]] = {
    "float": np.float32,
    "float32": np.float32,
    "halffloat": np.float16,
    "float16": np.float16,
}  # Arrow's names
INSTALL = "pip install 'rlswarm_jax[datasets]'"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)

Columns = dict[str, Any]
Numbered = tuple[int, Columns]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows in order, each with its number and its columns by name. place: what makes with a number a whole place."""

    place: str
    rows: list[Numbered]


def read(path: str, split: str = "train", subset: str = "", revision: str = "") -> Table:
    """All rows of a .jsonl, .json (an array of objects), .csv (with a header) or .parquet file, of a folder written by
    `save_to_disk` of Hugging Face's `datasets`, of data that comes with this package ("embedded:word_problems"), or of
    a hub id such as "openai/gsm8k".

    split: of a folder that has any, and of the hub. subset, revision: of the hub. Raises TaskError.
    """
    if path.startswith(EMBEDDED):
        return _read_file(_embedded(path.removeprefix(EMBEDDED)))
    file = Path(path).expanduser()
    if file.is_dir():
        return _from_folder(file, split)
    if is_file(path):
        return _read_file(file)
    if not _HUB_ID.fullmatch(path):
        raise TaskError(f"there is no file or folder {path!r}, and no hub id looks like this.")
    return _from_hub(path, split, subset, revision)


def is_file(path: str) -> bool:
    """Whether a path means one file, which has no splits."""
    file = Path(path).expanduser()
    return path.startswith(EMBEDDED) or (file.suffix in READERS and not file.is_dir()) or file.is_file()


def _embedded(name: str) -> Path:
    folder = Path(assets.__file__).parent
    known = sorted(file.stem for file in folder.glob("*.jsonl"))
    if name not in known:
        raise TaskError(f"no data {name!r} comes with this package; expected {EMBEDDED}{' or '.join(known)}.")
    return folder / f"{name}.jsonl"


def _read_file(file: Path) -> Table:
    if file.suffix not in READERS:
        raise TaskError(f"{file} is of no known kind; expected a name that ends in {', '.join(READERS)}.")
    try:
        rows = list(READERS[file.suffix](file))
    except OSError as error:
        raise TaskError(f"{file} cannot be read: {error.strerror or error}.") from None
    if not rows:
        raise TaskError(f"{file} is empty; expected at least one row.")
    return Table(f"{file}, {'line' if file.suffix in ('.jsonl', '.csv') else 'row'}", rows)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with file.open("rb") as source:
        number = 0
        while raw := source.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE:
                raise TaskError(f"{file}, line {number}: it is longer than {MAX_LINE:,} bytes.")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise TaskError(f"{file}, line {number}: it is not UTF-8 ({error.reason}).") from None


def _jsonl(file: Path) -> Iterator[Numbered]:
    for number, line in _lines(file):
        if line.strip():
            where = f"{file}, line {number}"
            yield number, _object(_json(line, where), where)


def _whole_json(file: Path) -> Iterator[Numbered]:
    if file.stat().st_size > MAX_JSON:
        raise TaskError(f"{file} is longer than {MAX_JSON:,} bytes; as .jsonl, a line for each row, it may be longer.")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}).") from None
    rows = _json(text, str(file)) if text.strip() else []
    if not isinstance(rows, list):
        raise TaskError(f"{file} holds a {type(rows).__name__}; expected an array of objects.")
    for number, row in enumerate(rows, 1):
        yield number, _object(row, f"{file}, row {number}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=Written)
    except RecursionError:
        raise TaskError(f"{where}: it is nested too deeply.") from None
    except ValueError as error:  # of json's own, of a number of too many digits, or of the line below
        raise TaskError(f"{where}: it is not JSON: {error}.") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _object(value: Any, where: str) -> Columns:
    if not isinstance(value, dict):
        raise TaskError(f"{where}: it holds a {type(value).__name__}; expected an object with named columns.")
    return value


def _csv(file: Path) -> Iterator[Numbered]:
    reader = csv.reader((line for _, line in _lines(file)), strict=True)  # fields have at most 131,072 characters
    header: list[str] = []
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise TaskError(f"{file}, line {reader.line_num}: it is not CSV: {error}.") from None
        if not header:
            header = fields
            if len(set(header)) < len(header):
                raise TaskError(f"{file}, line {reader.line_num}: two columns have the same name.")
        elif len(fields) == len(header):
            yield reader.line_num, dict(zip(header, fields, strict=True))
        elif fields:  # a line of nothing at all is passed over
            where = f"{file}, line {reader.line_num}"
            raise TaskError(f"{where}: it has {len(fields)} fields, the header {len(header)}.")


def _parquet(file: Path) -> Iterator[Numbered]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise TaskError(f"{file} needs pyarrow, which is not installed: {INSTALL}.") from None
    try:
        table = parquet.read_table(file)
    except ArrowException as error:
        raise TaskError(f"{file} is not Parquet: {_first_line(error)}.") from None
    yield from _numbered(table.to_pylist(), {field.name: str(field.type) for field in table.schema})


READERS: Mapping[str, Callable[[Path], Iterator[Numbered]]] = {
    ".jsonl": _jsonl,
    ".json": _whole_json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _from_folder(folder: Path, split: str) -> Table:
    datasets = _datasets(str(folder))
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise TaskError(f"{folder} is not a folder that datasets has saved: {_first_line(error)}.") from None
    if isinstance(found, dict):
        if split not in found:
            raise TaskError(f"{folder} has no split {split!r}; it has {', '.join(found)}.")
        found = found[split]
    return Table(f"{folder}, row", _numbered(found, _types(found)))


def _from_hub(name: str, split: str, subset: str, revision: str) -> Table:
    datasets = _datasets(name)
    try:
        found = datasets.load_dataset(name, subset or None, split=split, revision=revision or None)
        return Table(f"data set {name}, row", _numbered(found, _types(found)))
    except (OSError, ValueError, datasets.exceptions.DatasetsError, ImportError) as error:
        # no such id, subset, split or revision; or no connection and not in the cache: the first line says which
        raise TaskError(
            f"data set {name!r} (subset {subset!r}, split {split!r}) is no file here, and cannot be had from the "
            f"Hugging Face hub or its cache: {_first_line(error)}."
        ) from None


def _datasets(path: str) -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise TaskError(f"{path!r} needs Hugging Face's datasets, which is not installed: {INSTALL}.") from None
    return datasets


def _types(found: Any) -> dict[str, str]:
    """The names of the columns' types, of those that have one."""
    return {name: getattr(feature, "dtype", "") for name, feature in (getattr(found, "features", None) or {}).items()}


def _numbered(rows: Iterable[Columns], types: Mapping[str, str]) -> list[Numbered]:
    """With numbers of 32 or 16 bits as they were meant: 0.1, which as a Python float is 0.10000000149011612."""
    narrow = {name: NARROW[kind] for name, kind in types.items() if kind in NARROW}
    return [
        (number, row | {name: _short(row[name], narrow[name]) for name in narrow}) for number, row in enumerate(rows, 1)
    ]


def _short(value: Any, kind: type[np.floating]) -> Any:
    return value if value is None else Written(np.format_float_positional(kind(value), trim="-"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
