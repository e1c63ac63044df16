"""Data sets: prepared once, named by hashes, fetched when needed, read in an order that everybody can compute.

manifest.py     what a prepared data set is
order.py        the keyed permutation from positions to rows
reader.py       rows from shards; sources.py is where shards come from
feed.py         what a peer trains on: leased positions or private rows
documents.py, tokenizer.py, pack.py, prepared.py, private.py    from text to shards
"""
