"""Rows of parquet and arrow files, and of the folders that `datasets` writes with `save_to_disk`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rome_jax.files import extras
from rome_jax.files.formats import ARROW_FILE, ARROW_STREAM, PARQUET
from rome_jax.files.memory import check_memory
from rome_jax.files.system_errors import explaining

_ROWS = 1024  # rows in memory at once
_EXPANSION = 4  # Python objects take about this many times the memory of columns


def is_columnar(head: bytes) -> bool:
    """Returns whether a file that begins with these bytes is a parquet or an arrow file."""
    return head.startswith((PARQUET, ARROW_FILE, ARROW_STREAM))


def saved_files(folder: Path, error: type[ValueError]) -> list[Path] | None:
    """Lists the arrow files of a folder that `datasets` wrote with `save_to_disk`.

    Args:
      folder: The folder.
      error: Exception to raise.

    Returns:
      The files in the order of their rows; None if `datasets` did not write the folder.

    Raises:
      error: If it holds several splits, or a file is missing.
    """
    splits = sorted(path.parent for path in folder.glob("*/state.json"))
    if (folder / "dataset_dict.json").is_file():
        if len(splits) != 1:
            shown = ", ".join(map(str, splits)) or "none"
            raise error(f"{folder} holds {len(splits)} splits: give the folder of one ({shown}).")
        folder = splits[0]
    if not (folder / "state.json").is_file():
        return None
    files = sorted(folder.glob("*.arrow"))
    if not files:
        raise error(f"{folder} has no .arrow file: copy the folder again.")
    return files


@dataclasses.dataclass(frozen=True)
class Table:
    """A parquet or arrow file that is read a batch of rows at a time.

    Attributes:
      path: The file.
      columns: Names of its columns.
      num_rows: The number of rows; None if only reading tells.
      error: Exception for everything that is wrong with the file.
    """

    path: Path
    columns: tuple[str, ...]
    num_rows: int | None
    error: type[ValueError]
    _reader: Any = dataclasses.field(repr=False)

    def check_texts(self, column: str, remedy: str) -> None:
        """Checks that there is a column of texts.

        Args:
          column: Name of the column.
          remedy: What to do otherwise.

        Raises:
          error: If there is no such column, or it holds something else.
        """
        import pyarrow as pa

        schema = self._reader.schema_arrow if self._is_parquet else self._reader.schema
        if column not in self.columns:
            raise self.error(
                f"{self.path} has no column {column!r}, only {list(self.columns)}: {remedy}."
            )
        kind = schema.field(column).type
        inner = kind.value_type if pa.types.is_dictionary(kind) else kind
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        if not (pa.types.is_null(inner) or any(test(inner) for test in texts)):
            raise self.error(f"{self.path}: column {column!r} holds {kind} and no texts: {remedy}.")

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yields the rows.

        Args:
          columns: Names of the columns to read; by default all.

        Raises:
          error: If the file is damaged.
        """
        batches = self._batches(columns)
        while True:
            try:
                batch = next(batches, None)
                if batch is not None:
                    batch.validate(full=True)  # pyarrow follows wrong offsets out of its memory
                rows = [] if batch is None else batch.to_pylist()
            except Exception as error:  # pyarrow's errors have no common class
                raise self.error(_damaged(self.path, error)) from error
            if batch is None:
                return
            yield from rows

    def check_memory(self) -> None:
        """Checks that all rows fit in memory.

        Raises:
          error: If they do not.
        """
        size = self.path.stat().st_size
        if self._is_parquet:
            about = self._reader.metadata
            size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        check_memory(_EXPANSION * size, f"{self.path}, read as records,", error=self.error)

    @property
    def _is_parquet(self) -> bool:
        return self.num_rows is not None

    def _batches(self, columns: Sequence[str] | None) -> Iterator[Any]:
        """Yields batches of rows as pyarrow reads them."""
        if self._is_parquet:
            yield from self._reader.iter_batches(_ROWS, columns=columns)
            return
        for batch in _arrow_batches(self.path):
            yield batch if columns is None else batch.select(list(columns))


def open_table(path: Path, error: type[ValueError]) -> Table:
    """Opens a parquet or arrow file.

    Args:
      path: The file.
      error: Exception to raise.

    Raises:
      error: If the file is damaged.
      MissingPackageError: If pyarrow is not installed.
    """
    extras.check("pyarrow", "data", str(path))
    import pyarrow.parquet

    with explaining(path, reading=True), open(path, "rb") as file:
        head = file.read(len(ARROW_FILE))
    try:
        if head.startswith(PARQUET):
            reader = pyarrow.parquet.ParquetFile(path)
            names = reader.schema_arrow.names
            return Table(path, tuple(names), reader.metadata.num_rows, error, reader)
        opened = _arrow_reader(path)
        return Table(path, tuple(opened.schema.names), None, error, opened)
    except OSError as problem:
        if problem.errno is not None:  # of the file system, not of the content
            raise
        raise error(_damaged(path, problem)) from problem
    except Exception as problem:  # pyarrow's errors have no common class
        raise error(_damaged(path, problem)) from problem


def _arrow_reader(path: Path) -> Any:
    """Opens an arrow file, whichever of the two formats it has."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    with open(path, "rb") as file:
        streamed = not file.read(len(ARROW_FILE)).startswith(ARROW_FILE)
    return pa.ipc.open_stream(source) if streamed else pa.ipc.open_file(source)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Yields the batches of an arrow file."""
    reader = _arrow_reader(path)
    if hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        yield from reader


def _damaged(path: Path, error: Exception) -> str:
    """Says that a file is damaged, and how pyarrow noticed."""
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return f"{path} is damaged or is not a parquet or arrow file ({reason}): copy it again."
