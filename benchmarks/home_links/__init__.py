"""How fast a run is over home links, beside what people use today: `python -m benchmarks.home_links --help`."""
