"""The model is a log: what is in it, and what follows from it.

chain.py        signed records in a hash chain, checked and kept
accounting.py   credit and everything else that is a fold over the records
aggregate.py    how contributions change the weights, to the same bits everywhere
state.py        the weights and their digest; snapshots.py keeps whole ones
replica.py      a copy of all this, brought to the head
verify.py       a replay that trusts nothing
"""
