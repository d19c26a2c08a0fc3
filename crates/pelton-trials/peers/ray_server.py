"""The scripted model behind Ray Serve: 20 ms a batch and 0.5 ms a row, or what the environment says. It gives back what it gets.

Runs until it is sent SIGTERM."""

import argparse
import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

LATENCY = float(os.environ["SCRIPTED_LATENCY"])
PER_ROW = float(os.environ["SCRIPTED_PER_ROW"])
ROWS = int(os.environ["SCRIPTED_ROWS"])

arguments = argparse.ArgumentParser()
arguments.add_argument("--port", type=int, required=True)
arguments.add_argument("--folder", required=True, help="for Ray's own files; short, because sockets are among them")
arguments.add_argument("--batch-wait", type=float, help="seconds; by default Ray's own")
arguments.add_argument("--ongoing", type=int, required=True, help="requests that the replica has at a time")
arguments.add_argument("--queued", type=int, default=-1, help="requests that wait for the replica; -1: any number")
arguments = arguments.parse_args()

batching = {"max_batch_size": ROWS}
if arguments.batch_wait is not None:
    batching["batch_wait_timeout_s"] = arguments.batch_wait


@serve.deployment(
    num_replicas=1, max_ongoing_requests=arguments.ongoing, max_queued_requests=arguments.queued
)
class Scripted:
    def __init__(self):
        # The model runs beside the replica's loop, which goes on taking requests.
        self.model = ThreadPoolExecutor(1)

    @serve.batch(**batching)
    async def run(self, rows):
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.model, time.sleep, LATENCY + PER_ROW * len(rows))
        return rows

    async def __call__(self, request: Request):
        return Response(await self.run(await request.body()), media_type="application/octet-stream")


ray.init(
    address="local",
    _temp_dir=arguments.folder,
    num_cpus=4,
    include_dashboard=False,
    object_store_memory=256 << 20,
    log_to_driver=False,
)
serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
serve.run(Scripted.bind(), route_prefix="/")

ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
while not ended:
    time.sleep(0.1)
serve.shutdown()
ray.shutdown()
