"""Measures the memory of one forward (and backward) pass in its own process: `python -m dgmn.bench.child JOB`."""

import dataclasses
import json
import sys

import torch

from dgmn.bench import models, ops
from dgmn.bench.measure import REFUSALS, Job, peak_of_this_process


def main(text: str) -> None:
    job = Job(**json.loads(text))
    torch.set_num_threads(job.threads)
    tools = {"ops": ops, "models": models}[job.kind]
    # A tiny run makes libraries load and allocate what they keep. Compiled code runs in full instead: it is made for
    # one size, and its compiler needs memory too.
    in_full = job.compiled
    if not in_full:
        try:
            tools.prepare(dataclasses.replace(job, case=tools.TINY, batch=1))()
        except REFUSALS:  # not every network takes a tiny image
            in_full = True
    work = tools.prepare(job)
    if in_full:
        work()
    print(json.dumps(peak_of_this_process(work, already_ran=in_full)))


if __name__ == "__main__":
    main(sys.argv[1])
