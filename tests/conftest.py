"""What holds for every test: one thread per process, no network but loopback, no stopwatch on random examples.

The environment is set before anything heavy is imported, and child processes inherit it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests themselves run in parallel
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # as in peer/__init__.py

from hypothesis import HealthCheck, settings

# A loaded machine is slow, not wrong. In CI the examples are the same every time, so that a failure can be repeated.
settings.register_profile(
    "commonweights",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("commonweights")
