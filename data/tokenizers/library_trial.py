"""The process in which a foreign `tokenizer.json` is tried; see `data.tokenizers.safe_library`. Nothing imports it.

A regular expression may never end, a normalizer may make a text a million times longer, and the library may end the
process: here that costs `PROCESSOR_SECONDS` and `MEMORY_BYTES` of a process that nobody misses.
"""

from __future__ import annotations

import json
import sys

PROCESSOR_SECONDS, MEMORY_BYTES = 10, 1 << 30
SOUND, UNLIMITED = "sound", "unlimited"


def main() -> None:
    """Reads {path, content, probes} from stdin, and says `SOUND` when every probe was encoded and decoded, `UNLIMITED`
    on a system that cannot limit a process: nothing is tried there.
    """
    told = json.load(sys.stdin)
    sys.path[:] = told["path"]
    from tokenizers import Tokenizer  # type: ignore[import-not-found,unused-ignore]  # an extra

    from runtime.processes.system import limit_this_process

    if not limit_this_process(MEMORY_BYTES, PROCESSOR_SECONDS):
        print(UNLIMITED)
        return
    tokenizer = Tokenizer.from_str(told["content"])
    for probe in told["probes"]:
        for marks in (False, True):
            ids = tokenizer.encode(probe, add_special_tokens=marks).ids
            tokenizer.decode(ids)
            tokenizer.decode(ids[:20], skip_special_tokens=False)
    print(SOUND)


if __name__ == "__main__":
    main()
