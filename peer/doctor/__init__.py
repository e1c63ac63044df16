"""`commonweights doctor`: would this machine do well in a run, what is in the way, and what cures it.

finding.py     what a check finds
facts.py       what the checks look at, as plain data
verdicts.py    from facts to findings: pure
local.py       facts about this machine
remote.py      facts about the way to the swarm
examine.py     all checks side by side, each with its deadline
show.py        for people
"""
