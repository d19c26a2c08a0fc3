"""An echo behind LitServe: raw bytes in and out, one worker a replica."""

import argparse
from typing import Annotated

import litserve
import replica
from fastapi import Body, Response

Raw = Annotated[bytes, Body(media_type="application/octet-stream")]


class Echo(litserve.LitAPI):
    def setup(self, device):
        replica.register()

    def decode_request(self, request: Raw):
        return request

    def predict(self, x):
        replica.work()
        return x

    def encode_response(self, output):
        return Response(content=output, media_type="application/octet-stream")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments = arguments.parse_args()
    server = litserve.LitServer(
        Echo(max_batch_size=1),
        accelerator="cpu",
        devices=1,
        workers_per_device=replica.REPLICAS,
        timeout=60,
        fast_queue=True,
        restart_workers=True,
    )
    server.run(host="127.0.0.1", port=arguments.port, log_level="error", access_log=False, generate_client_file=False)
