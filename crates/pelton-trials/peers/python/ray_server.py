"""The digits behind Ray Serve: bodies are pixels, answers labels, with its dynamic batching. Runs until it is sent SIGTERM."""

import argparse
import logging
import os
import signal
import time

import digits
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

arguments = argparse.ArgumentParser()
arguments.add_argument("--port", type=int, required=True)
arguments.add_argument("--folder", required=True, help="for Ray's own files; short, because sockets are among them")
arguments = arguments.parse_args()


@serve.deployment(num_replicas=1, max_ongoing_requests=2048, ray_actor_options={"num_cpus": 0.1})
class Digits:
    def __init__(self, model):
        self.model = digits.Model(model)

    # The model takes less than a switch of threads would, so it runs on the replica's loop.
    @serve.batch(max_batch_size=int(os.environ.get("DIGITS_BATCH", "64")), batch_wait_timeout_s=float(os.environ.get("DIGITS_WAIT", "0.005")))
    async def classify(self, requests):
        return self.model.answers(requests)

    async def __call__(self, request: Request):
        return Response(await self.classify(await request.body()), media_type="application/octet-stream")


ray.init(
    address="local",
    _temp_dir=arguments.folder,
    num_cpus=4,
    include_dashboard=False,
    object_store_memory=256 << 20,
    logging_level=logging.ERROR,
    log_to_driver=False,
)
serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
serve.run(Digits.bind(os.environ["DIGITS_MODEL"]), route_prefix="/")

ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
while not ended:
    time.sleep(0.1)
serve.shutdown()
ray.shutdown()
