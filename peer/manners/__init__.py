"""How politely a peer uses a machine that belongs to somebody: what the owner allows, and what the machine is doing.

settings.py    the settings file in the peer's folder
schedule.py    hours of the week
machine.py     battery, heat, other programs on the GPU, a metered link
orders.py      `commonweights pause` and `resume`
decide.py      may this peer train now, and why not: pure
steward.py     looks, decides, and tells the node
"""
