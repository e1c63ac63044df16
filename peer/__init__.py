"""Everything one node does, and all the maths.

node.py         the life of a peer, read it first; join.py puts one together from a ticket
log/            the model is a log: chain, accounts, state, aggregation, replicas, replay
rounds/         who decides (sequencer), who asks (link), and what becomes of a peer's work (contributor)
codecs/         compression of pseudo-gradients
training/       the trainer, its tasks and the layout of checkpoints; checkpoints/ vouches for them and checks them
data/           data sets: manifest, order, shards
exchange/       content-addressed blobs between peers
swarm/          how peers reach each other; the only place that knows hivemind
terminal/       what people see
cli.py          the command line; participate.py, status.py and verification.py are its longer commands
"""

import os

# Children of ours start another program at once. What gRPC does for those that would go on with it after a fork prints
# errors, and now and then aborts the child. Read when gRPC is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
