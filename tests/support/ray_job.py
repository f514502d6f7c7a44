"""A job with two actors on a local Ray cluster, run as a subprocess: python ray_job.py URL FOLDER ROWS OUT."""

import json
import os
import sys
from pathlib import Path

import ray
import ray.data

from friendli_async.integrations.ray import CompleteStage

if __name__ == "__main__":
    url, folder, rows, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    os.environ["FRIENDLI_TOKEN"] = "test-token"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=150 * 1024 * 1024)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_items([{"id": n, "prompt": f"row {n}"} for n in range(rows)], override_num_blocks=16)
    dataset = dataset.map_batches(
        CompleteStage,
        fn_constructor_kwargs={"model": "m", "checkpoint": folder, "concurrency": 8, "client": {"server_url": url}},
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=32,
        num_cpus=0.5,
    )
    with Path(out).open("w") as file:
        for row in dataset.iter_rows():
            file.write(json.dumps(row) + "\n")
