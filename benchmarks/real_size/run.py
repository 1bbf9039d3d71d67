"""One run of the benchmark: a model, its dtypes, and its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks.gpu.sizes import Size


@dataclasses.dataclass(frozen=True)
class Run:
    """A model to measure.

    Attributes:
      model: Model, a key of `benchmarks.gpu.sizes.NAMES`.
      dtype: Dtype of the weights in the files.
      load_dtype: Dtype of the loaded weights; "" keeps that of the files.
      directory: Folder of all checkpoints and of the results.
      tiny: Whether to take a tiny model of the same family.
    """

    model: str
    dtype: str
    directory: str
    load_dtype: str = ""
    tiny: bool = False

    @property
    def size(self) -> Size:
        """Configuration and edit layer of the model."""
        return Size.of(self.model, self.tiny)

    @property
    def checkpoint(self) -> Path:
        """Folder of the model in the Hugging Face format."""
        return Path(self.directory) / f"{self.model}-{self.dtype}"

    @property
    def statistics(self) -> Path:
        """Folder of the second moment of the edit layer."""
        return Path(self.directory) / f"{self.model}-statistics"

    @property
    def title(self) -> str:
        """Heading of the run's table.

        Example:
          >>> Run("gpt2-xl", "float16", "/tmp", load_dtype="bfloat16").title
          'gpt2-xl, float16 loaded as bfloat16'
        """
        loaded = f" loaded as {self.load_dtype}" if self.load_dtype else ""
        return f"{self.model}, {self.dtype}{loaded}"
