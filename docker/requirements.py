"""Print what pyproject.toml depends on, or the extras given as arguments: a layer that our own code leaves alone."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]]
sys.stdout.write("\n".join(extras or project["dependencies"]) + "\n")
