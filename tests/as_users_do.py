"""Calls a function of a test file in a process that compiles as users do.

The suite compiles with flags of its own (see conftest.py), which move last bits. What is compared
to the bit with numbers of another process is computed here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def called_as_users_do(function: Callable[[], Any]) -> Any:
  """What a function of a test file returns, as JSON gives it back."""
  path = Path(function.__code__.co_filename)
  program = f"import json, {path.stem} as test; print(json.dumps(test.{function.__name__}()))"
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  folders = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=path.parent,
    env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, folders))},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])
