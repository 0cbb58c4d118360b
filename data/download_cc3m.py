"""Downloads the images of a list of captions and URLs, such as CC-3M's:

    python -m data.download_cc3m Train_GCC-training.tsv --out data/cc3m --split train --workers 16

`DIR/<split>/<ab>/<hash of the URL>.jpg` are the images, `DIR/<split>_list.txt` the lines path<TAB>caption of those that
are there, in the list's order, `DIR/<split>_report.json` how many are alive and why the others are not. Started again
it goes on where it stopped: images that are there are kept, failures that are final are remembered in
`DIR/<split>_failures.tsv` and not tried again (`--retry-failed` does).

Lines hold a caption and a URL, in either order, separated by a tab (CC-3M, CC-12M).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.captions.url_fetching import PASSING, FetchFailed, Limits, fetch_image
from data.config import SPLITS
from data.text_files import read_lines
from runtime.atomic import write_text_atomically
from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error, one_line, say
from runtime.network.http_client import INTERNAL, SCHEMES

ALIVE, NOT_TRIED = "alive", "not tried"
LONGEST_TIMEOUT = 3600
_WINDOW = 4  # URLs handed out per worker: memory does not grow with the list


@dataclass(frozen=True)
class DownloadSettings:
    """What the command line says."""

    url_list: Path
    out: Path
    split: str
    workers: int = 16
    limit: int | None = None
    limits: Limits = field(default_factory=Limits)
    retry_failed: bool = False


def parse(words: Sequence[str] | None = None) -> DownloadSettings:
    default = Limits()
    parser = ArgumentParser(
        prog="python -m data.download_cc3m",
        takes_words=False,
        description="Download the images of a list of captions and URLs.",
        example="python -m data.download_cc3m Train_GCC-training.tsv --split train --out cc3m",
    )
    parser.add_argument("list", type=Path, help="tab-separated lines of a caption and a URL")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set (dataset.root)")
    parser.add_argument("--split", choices=SPLITS, required=True, help="which split the images become")
    requests = parser.add_argument_group("requests")
    requests.add_argument("--workers", type=int, default=16, help="images at a time (default: 16)")
    parser.add_argument("--limit", type=int, help="only the first lines of the list")
    requests.add_argument(
        "--timeout",
        type=float,
        default=default.timeout,
        help="seconds for an answer; a request may last four times that, from the look-up of its name to the last byte "
        f"(default: {default.timeout})",
    )
    requests.add_argument(
        "--retries",
        type=int,
        default=default.retries,
        help=f"after failures that may pass (default: {default.retries})",
    )
    requests.add_argument(
        "--backoff",
        type=float,
        default=default.backoff,
        help=f"seconds before the first retry, doubled for the next (default: {default.backoff})",
    )
    parser.add_argument(
        "--resize",
        type=int,
        default=default.resize,
        help=f"shrink larger images to this shorter side, 0: keep (default: {default.resize})",
    )
    requests.add_argument(
        "--max-bytes",
        type=int,
        default=default.max_bytes,
        help=f"larger files count as dead (default: {default.max_bytes})",
    )
    requests.add_argument(
        "--allow-private",
        action="store_true",
        help="also ask addresses of this machine and its network, to which no list from elsewhere should lead",
    )
    requests.add_argument("--retry-failed", action="store_true", help="also try what failed for good before")
    args = parser.parse_args(words)
    for flag, value, low in (
        ("--workers", args.workers, 1),
        ("--limit", args.limit, 1),
        ("--retries", args.retries, 0),
        ("--backoff", args.backoff, 0),
        ("--resize", args.resize, 0),
        ("--max-bytes", args.max_bytes, 1),
    ):
        if value is not None and not low <= value < math.inf:
            parser.error(f"{flag} {value} must be at least {low}")
    if not 0 < args.timeout <= LONGEST_TIMEOUT:
        parser.error(f"--timeout {args.timeout} must be positive and at most {LONGEST_TIMEOUT} seconds")
    limits = Limits(
        args.timeout,
        args.retries,
        args.backoff,
        args.max_bytes,
        resize=args.resize,
        allow_private=args.allow_private,
    )
    return DownloadSettings(args.list, args.out, args.split, args.workers, args.limit, limits, args.retry_failed)


def read_url_list(path: Path, limit: int | None = None) -> list[tuple[str, str]]:
    """(URL, caption) of every line; UserError names a line that has not two columns, one of them a URL."""
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(read_lines(path, replace=True), start=1):
        if limit is not None and len(pairs) == limit:
            break
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 2:
            raise UserError(f"{path}, line {number} has {len(columns)} columns; expected caption<TAB>URL")
        first_is_url = columns[0].startswith(tuple(f"{scheme}://" for scheme in SCHEMES))
        second_is_url = "://" in columns[1]
        pairs.append((columns[0], columns[1]) if first_is_url and not second_is_url else (columns[1], columns[0]))
    if not pairs:
        raise UserError(f"{path} is empty; expected lines caption<TAB>URL")
    return pairs


class Download:
    """The images of one split's list.

    Attributes:
        status: URL -> `alive` or why it is not.
    """

    def __init__(self, out: Path, split: str, urls: Sequence[str], limits: Limits, retry_failed: bool = False) -> None:
        self.out, self.split, self.limits = out, split, limits
        self.failures = out / f"{split}_failures.tsv"
        remembered = {} if retry_failed else self._remembered()
        self.status = {url: ALIVE if self.path_of(url).is_file() else remembered.get(url, NOT_TRIED) for url in urls}

    def path_of(self, url: str) -> Path:
        """Where the image of a URL goes."""
        name = hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()[:32]
        return self.out / self.split / name[:2] / f"{name}.jpg"

    def run(self, workers: int) -> None:
        """Tries every URL whose fate is open, `workers` at a time. UserError when the disk refuses."""
        waiting = iter([url for url, status in self.status.items() if status == NOT_TRIED])
        pending: dict[Future[str], str] = {}
        with (
            ThreadPoolExecutor(workers) as pool,
            open(self.failures, "a", encoding="utf-8") as journal,
            tqdm(total=len(self.status), desc=self.split, unit="url", disable=None) as bar,
        ):
            bar.update(sum(status != NOT_TRIED for status in self.status.values()))
            try:
                while self._hand_out(pool, waiting, pending, _WINDOW * workers):
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        url = pending.pop(future)
                        self.status[url] = status = future.result()
                        if status not in (ALIVE, *PASSING):
                            journal.write(f"{status}\t{url}\n")
                            journal.flush()
                        bar.update()
            finally:
                pool.shutdown(cancel_futures=True)  # after Ctrl-C or a full disk only the transfers under way end
                self.status.update((url, ALIVE) for url in pending.values() if self.path_of(url).is_file())

    def _hand_out(
        self, pool: ThreadPoolExecutor, waiting: Iterator[str], pending: dict[Future[str], str], window: int
    ) -> bool:
        while len(pending) < window and (url := next(waiting, None)) is not None:
            pending[pool.submit(self._fetch, url)] = url
        return bool(pending)

    def _fetch(self, url: str) -> str:
        try:
            content = fetch_image(url, self.limits)
        except FetchFailed as failure:
            return failure.reason
        self._keep(self.path_of(url), content)
        return ALIVE

    def _keep(self, path: Path, content: bytes) -> None:
        partial = path.with_name(f".partial-{threading.get_ident()}-{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"cannot write {path}: {one_line(error)}") from error

    def _remembered(self) -> dict[str, str]:
        """URL -> reason, of earlier runs; a last line that was cut off counts as not written."""
        if not self.failures.is_file():
            return {}
        lines = self.failures.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        final = {url: reason for reason, _, url in (line.partition("\t") for line in lines) if url}
        return {url: reason for url, reason in final.items() if reason != INTERNAL or not self.limits.allow_private}

    def report(self) -> dict[str, Any]:
        """How many URLs are alive, and the others by reason, most frequent first."""
        counts = Counter(self.status.values())
        dead = {reason: count for reason, count in counts.most_common() if reason not in (ALIVE, NOT_TRIED)}
        return {"urls": len(self.status), ALIVE: counts[ALIVE], NOT_TRIED: counts[NOT_TRIED], "dead": dead}


def write_list(download: Download, pairs: Sequence[tuple[str, str]]) -> int:
    """Writes `<split>_list.txt` of the images that are there; returns their number."""
    lines = []
    for url, caption in pairs:
        if download.status[url] == ALIVE:
            path = download.path_of(url).relative_to(download.out).as_posix()
            lines.append(f"./{path}\t{' '.join(caption.split())}\n")
    write_text_atomically(download.out / f"{download.split}_list.txt", "".join(lines))
    return len(lines)


def main(settings: DownloadSettings) -> None:
    pairs = read_url_list(settings.url_list, settings.limit)
    settings.out.mkdir(parents=True, exist_ok=True)
    download = Download(settings.out, settings.split, [url for url, _ in pairs], settings.limits, settings.retry_failed)
    interrupted = False
    try:
        download.run(settings.workers)
    except KeyboardInterrupt:
        interrupted = True
    report = {
        "list": str(settings.url_list),
        "lines": len(pairs),
        "pairs": write_list(download, pairs),
        **download.report(),
    }
    write_text_atomically(settings.out / f"{settings.split}_report.json", json.dumps(report, indent=1) + "\n")
    say(f"{report['pairs']} of {report['lines']} pairs; {report[ALIVE]} of {report['urls']} URLs alive")
    for reason, count in report["dead"].items():
        say(f"{count:>9} {reason}")
    if interrupted:
        say("interrupted; the same command goes on", to_stderr=True)
        raise SystemExit(130)


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
