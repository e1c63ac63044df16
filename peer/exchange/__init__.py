"""Content-addressed blobs: kept (blobs.py), served and fetched (exchange.py, download.py) below the link's speed."""
