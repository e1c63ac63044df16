"""Checkpoints as they travel: what vouches for one, and how a stranger checks it.

manifest.py     the signed list of a checkpoint's files, which also names the run, the record and the state
verification.py a checkpoint against its manifest, the coordinator's key, its own weights and the log
fetch.py        a checkpoint from any place that fsspec knows
"""
