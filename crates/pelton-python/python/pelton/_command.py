"""The command ``pelton``."""

from __future__ import annotations

import signal
import sys

from . import _pelton


def main() -> int:
    # The command hears of Ctrl-C itself, and ends in good order.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _pelton.command(["pelton", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
