"""Ray Data: the class is made once in each actor and called with batches of numpy arrays. `--how`: the number of actors."""

import logging
import os

# Ray gives its workers a lower priority, and reports its use to its makers, unless it is told.
os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}

import digits
import numpy as np
import ray

arguments = digits.arguments()


class Classifier:
    def __init__(self, model):
        self.model = digits.Model(model)

    def __call__(self, rows):
        pixels = rows["pixels"]
        if pixels.dtype == object:
            pixels = np.stack(pixels)
        return {"id": rows["id"], "label": self.model.labels(pixels)}


# More cores than there are: the reader, the actors and the writer shall not wait for one another's.
ray.init(
    address="local", _temp_dir=arguments.folder, num_cpus=4, include_dashboard=False, object_store_memory=2 << 30, log_to_driver=False,
    logging_level=logging.ERROR,
)
ray.data.DataContext.get_current().enable_progress_bars = False
logging.getLogger("ray.data").setLevel(logging.ERROR)
with digits.Timer() as timer:
    rows = ray.data.read_parquet(arguments.input + "/", file_extensions=["parquet"])
    actors = ray.data.ActorPoolStrategy(size=int(arguments.how or 1))
    labels = rows.map_batches(
        Classifier, fn_constructor_args=[arguments.model], compute=actors, batch_size=arguments.batch, batch_format="numpy",
        zero_copy_batch=True,
    )
    labels.write_parquet(arguments.output)
digits.report(arguments, timer.seconds)
ray.shutdown()
