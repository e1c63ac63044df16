"""Run specs: the schema, and TOML files that follow it. Imports nothing of peer or coordinator, and no torch."""

from configs.load import SpecError, load
from configs.schema import RunSpec

__all__ = ["RunSpec", "SpecError", "load"]
