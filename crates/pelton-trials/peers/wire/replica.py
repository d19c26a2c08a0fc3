"""What every server of `bench wire` is told, in the environment: how long a call takes, how many replicas there are, where they leave their pids."""

import os
import time

SECONDS = float(os.environ.get("WIRE_SECONDS", "0"))
REPLICAS = int(os.environ.get("WIRE_REPLICAS", "1"))


def register():
    """A replica says that it is there: one of them is killed."""
    with open(os.path.join(os.environ["WIRE_PIDS"], str(os.getpid())), "w"):
        pass


def work():
    """What a call takes besides its way. Nothing, for an echo."""
    if SECONDS:
        time.sleep(SECONDS)
