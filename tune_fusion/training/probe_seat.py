"""One process of a probe: `tune_fusion.training.seat` between its standard input and output.

It ends with its input, whatever it is at: also while torch is being imported, which takes seconds.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import TextIO


def main() -> None:
    """Answer what is asked."""
    orders = _lines(sys.stdin)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as replies:
        # Whatever else is printed, by a compiler for instance, is no answer.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        # Not before somebody watches the input.
        from tune_fusion.training.seat import serve

        serve(orders, replies)


def _lines(stream: TextIO) -> Iterator[str]:
    """The lines of `stream`; this process ends at once with it, since whoever asked is gone then."""
    lines = SimpleQueue[str]()

    def read() -> None:
        for line in stream:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return iter(lines.get, None)


if __name__ == "__main__":
    main()
