"""What the project measures about itself: `python -m benchmarks.NAME` from the repository root."""
