"""The scripted model behind mosec: 20 ms a batch and 0.5 ms a row, or what the environment says. It gives back what it gets.

The arguments are mosec's own: --address, --port, --capacity, ..."""

import os
import time

from mosec import Server, Worker

LATENCY = float(os.environ["SCRIPTED_LATENCY"])
PER_ROW = float(os.environ["SCRIPTED_PER_ROW"])
ROWS = int(os.environ["SCRIPTED_ROWS"])


class Scripted(Worker):
    def deserialize(self, data):
        return bytes(data)

    def serialize(self, data):
        return data

    def forward(self, rows):
        time.sleep(LATENCY + PER_ROW * len(rows))
        return rows


if __name__ == "__main__":
    server = Server()
    server.append_worker(Scripted, num=1, max_batch_size=ROWS)
    server.run()
