"""An echo behind Ray Serve. Runs until it is sent SIGTERM."""

import argparse
import asyncio
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

# The replicas are processes of Ray's, which look for the same modules.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

import ray
import replica
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

arguments = argparse.ArgumentParser()
arguments.add_argument("--port", type=int, required=True)
arguments.add_argument("--folder", required=True, help="for Ray's own files; short, because sockets are among them")
arguments.add_argument("--ongoing", type=int, required=True, help="requests that a replica has at a time")
arguments = arguments.parse_args()


@serve.deployment(
    num_replicas=replica.REPLICAS, max_ongoing_requests=arguments.ongoing, ray_actor_options={"num_cpus": 0.1}
)
class Echo:
    def __init__(self):
        # The model runs beside the replica's loop, which goes on taking requests.
        self.model = ThreadPoolExecutor(1)
        replica.register()

    async def __call__(self, request: Request):
        body = await request.body()
        if replica.SECONDS:
            await asyncio.get_running_loop().run_in_executor(self.model, replica.work)
        return Response(body, media_type="application/octet-stream")


ray.init(
    address="local",
    _temp_dir=arguments.folder,
    num_cpus=4,
    include_dashboard=False,
    object_store_memory=256 << 20,
    log_to_driver=False,
)
serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
serve.run(Echo.bind(), route_prefix="/")

ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
while not ended:
    time.sleep(0.1)
serve.shutdown()
ray.shutdown()
