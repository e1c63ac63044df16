"""Faults as data: schedules of kills, stops, cuts and damage, for real processes and for the in-memory swarm.

schedule.py    what happens to whom, and when: plain data, also readable from TOML
world.py       the interface of a place where faults can happen, and what is found there afterwards
memory.py      ... the in-memory swarm, which runs everywhere
processes.py   ... real processes, each peer in a network namespace of its own (root, Linux)
runner.py      brings a schedule upon a world and keeps watch
judgement.py   what must hold whatever happened; read from the folders of the nodes
scenarios.py   the schedules of the tests and of `python -m tests.faults`
"""
