"""A round: opened, closed and recorded by the sequencer, filled by the peers.

sequencer.py    the decisions, as a pure state machine; leases.py and ranges.py are its book-keeping
leader.py       the sequencer's shell: messages in, signed records out
link.py         a peer's line to the sequencer; directory.py is what the DHT says
contributor.py  from local weights to a contribution, and back when it was not merged
feedback.py     error feedback; work.py counts what is not merged yet
ladder.py       how sparse a contribution must be to be hidden behind a round; rung.py measures
"""
