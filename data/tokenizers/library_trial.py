"""The process in which a foreign `tokenizer.json` is tried; see `data.tokenizers.safe_library`. Nothing imports it.

A regular expression may never end, a normalizer may make a text a million times longer, and the library may end the
process: here that costs `PROCESSOR_SECONDS` and `MEMORY_BYTES` of a process that nobody misses.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

PROCESSOR_SECONDS, MEMORY_BYTES = 10, 1 << 30


def main() -> None:
    """Reads {path, content, probes} from stdin, and says `sound` when every probe was encoded and decoded."""
    told = json.load(sys.stdin)
    sys.path[:] = told["path"]
    from tokenizers import Tokenizer  # type: ignore[import-not-found,unused-ignore]  # an extra

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES, mapped + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    tokenizer = Tokenizer.from_str(told["content"])
    for probe in told["probes"]:
        for marks in (False, True):
            ids = tokenizer.encode(probe, add_special_tokens=marks).ids
            tokenizer.decode(ids)
            tokenizer.decode(ids[:20], skip_special_tokens=False)
    print("sound")


if __name__ == "__main__":
    main()
