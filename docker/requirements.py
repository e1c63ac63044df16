"""Print what pyproject.toml depends on, with the extras given as arguments: a layer that our own code does not touch."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
wanted = [
    *project["dependencies"],
    *(line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]),
]
sys.stdout.write("\n".join(wanted) + "\n")
