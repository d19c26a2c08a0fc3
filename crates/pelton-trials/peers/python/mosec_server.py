"""The digits behind mosec: bodies are pixels, answers labels. Dynamic batching: what waits is classified together, and one image waits for no other
longer than a millisecond. The arguments are mosec's own: --address, --port, --capacity, ..."""

import os

import digits
from mosec import Server, Worker


class Digits(Worker):
    def __init__(self):
        super().__init__()
        self.model = digits.Model(os.environ["DIGITS_MODEL"])

    def deserialize(self, data):
        return bytes(data)

    def serialize(self, data):
        return data

    def forward(self, requests):
        return self.model.answers(requests)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Digits, num=1, max_batch_size=int(os.environ.get("DIGITS_BATCH", "64")), max_wait_time=int(os.environ.get("DIGITS_WAIT", "1")))
    server.run()
