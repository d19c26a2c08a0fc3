"""An echo behind mosec. The arguments are mosec's own: --address, --port, --capacity, ..."""

import replica
from mosec import Server, Worker


class Echo(Worker):
    def __init__(self):
        super().__init__()
        replica.register()

    def deserialize(self, data):
        return bytes(data)

    def serialize(self, data):
        return data

    def forward(self, data):
        replica.work()
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, num=replica.REPLICAS)
    server.run()
