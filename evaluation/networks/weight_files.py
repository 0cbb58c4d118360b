"""Where the weights of feature networks come from: a given file, an environment variable, torch hub's cache.

No score downloads anything; a missing file is an error that says where it may be put. Only the command does, when it is
told to: `python -m evaluation.networks fetch`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from runtime.errors import UserError, one_line
from runtime.network.http_client import INTERNAL, DownloadFailed, TransferLimits, download
from runtime.processes.system import flush_to_disk


class WeightSource(NamedTuple):
    """A published weight file: its well-known name, the start of its SHA-256, its environment variable and URL, and,
    where it is known, the whole SHA-256.
    """

    file_name: str
    sha256_prefix: str
    environment: str
    url: str
    sha256: str = ""

    @property
    def cached(self) -> Path:
        """Its place in torch hub's cache (`$TORCH_HOME/hub/checkpoints`)."""
        import torch  # late, so that the flags of the command are read first

        return Path(torch.hub.get_dir()) / "checkpoints" / self.file_name

    def matches(self, sha256: str) -> bool:
        """Whether a file with this SHA-256 is the published one."""
        return sha256 == self.sha256 if self.sha256 else sha256.startswith(self.sha256_prefix)


FID_INCEPTION = WeightSource(
    file_name="pt_inception-2015-12-05-6726825d.pth",
    sha256_prefix="6726825d",
    environment="FID_INCEPTION_WEIGHTS",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
WEIGHTS: dict[str, WeightSource] = {"fid-inception": FID_INCEPTION}
TIMEOUT_SECONDS, TOTAL_SECONDS = 30, 3600
MAX_BYTES = 1 << 31
_SCHEMES = ("https", "http", "file")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file as 64 hex digits, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_weights(source: WeightSource, path: str | os.PathLike[str] | None = None) -> tuple[Path, str]:
    """The weight file and its SHA-256: `path` if given, else the environment variable, else torch hub's cache.

    A file with the well-known name must have the well-known hash; under another name any file is taken (and its hash
    becomes part of the metric names).

    Raises:
        FileNotFoundError: no such file; the message lists the places.
        ValueError: the well-known file is damaged.
    """
    found = Path(path or os.environ.get(source.environment) or source.cached).expanduser()
    if not found.is_file():
        raise FileNotFoundError(
            f"no weights at {found}: run `python -m evaluation.networks fetch`, or download {source.url} and give its "
            f"path by flag, by the environment variable {source.environment}, or put it at {source.cached}; "
            "`--features efficientnet-lite0` and `classifier` need none"
        )
    sha256 = file_sha256(found)
    if found.name == source.file_name and not source.matches(sha256):
        raise ValueError(f"{found} is damaged: its SHA-256 starts with {sha256[:8]}, not {source.sha256_prefix}")
    return found, sha256


def fetch_weights(
    source: WeightSource,
    url: str | None = None,
    path: str | os.PathLike[str] | None = None,
    allow_private: bool = False,
) -> Path:
    """Downloads a weight file; what is there already and sound is left as it is.

    It is written under a temporary name, compared with the published SHA-256 and only then renamed.

    Args:
        url: another place with the same file (`https:`, `http:` or `file:`).
        path: where it goes; None is torch hub's cache, where it is looked for.
        allow_private: whether an internal address may be asked (`runtime.network.addresses`).

    Raises:
        UserError: the place cannot be reached, it gives another file, or the disk cannot be written.
    """
    url, target = url or source.url, Path(path or source.cached).expanduser()
    if urllib.parse.urlsplit(url).scheme not in _SCHEMES:
        raise UserError(f"{url} is no address: it must start with {', '.join(f'{name}:' for name in _SCHEMES)}")
    if target.is_file() and source.matches(file_sha256(target)):
        return target
    partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial, allow_private)
        sha256 = file_sha256(partial)
        if not source.matches(sha256):
            expected = source.sha256 or source.sha256_prefix
            raise UserError(f"{url} gives another file: its SHA-256 is {sha256}, expected {expected}; nothing was kept")
        flush_to_disk(partial)
        os.replace(partial, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {one_line(error)}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return target


def _download(url: str, partial: Path, allow_private: bool) -> None:
    with open(partial, "wb") as file:
        if urllib.parse.urlsplit(url).scheme == "file":
            try:
                with urllib.request.urlopen(url) as local:
                    shutil.copyfileobj(local, file, 1 << 20)
            except urllib.error.URLError as error:
                raise UserError(f"cannot download {url}: {error.reason}") from error
            return
        try:
            download(url, file, TransferLimits(TIMEOUT_SECONDS, TOTAL_SECONDS, MAX_BYTES, allow_private))
        except DownloadFailed as failure:
            how = "; --allow-private asks it all the same" if failure.kind == INTERNAL else ""
            raise UserError(f"cannot download {url}: {one_line(failure)}{how}") from failure
