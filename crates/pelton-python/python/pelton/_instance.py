"""The process of an instance: ``python -m pelton._instance``, started by a job, with its declaration on standard input.

With an argument it runs a script in place of the service: the argument has its methods.
"""

from __future__ import annotations

import faulthandler
import logging
import sys


def main() -> int:
    # A crash of the interpreter leaves its stacks in the log.
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)5s %(name)s: %(message)s")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    from . import _pelton

    try:
        why = _pelton.serve(*sys.argv[1:])
    except Exception as e:
        logging.getLogger("pelton").error("the instance cannot serve: %s", e)
        return 1
    logging.getLogger("pelton").info("the instance leaves: %s", why)
    return 0


if __name__ == "__main__":
    sys.exit(main())
