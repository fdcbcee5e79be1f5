"""Every notebook runs from top to bottom, and shows what its text says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MAX_BYTES = 100_000

# What a notebook's text claims, checked in its own kernel after its last cell.
CLAIMS = {
  "01_one_grpo_step": """
assert rollout.tokens.shape == (P, G, T) and rewards.shape == (P, G)
assert rewards.std(axis=1).max() > 0.2, "no group teaches anything: choose another seed"
np.testing.assert_allclose(advantages.sum(axis=1), 0, atol=1e-3)
assert abs(float(metrics["loss"])) < 1e-5 < float(metrics["grad_norm"])
assert float(metrics["sampling/sampling_logp_difference/max"]) < 1e-3
assert good.mean() > 0 > bad.mean()
assert all(jax.tree.leaves(same)), "grpo_step is not the steps one by one"
""",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_keeps_its_word(path):
  notebook = nbformat.read(path, as_version=4)
  notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS[path.stem]))
  client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}})
  client.execute()  # raises where a cell does
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small_and_committed_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert path.stat().st_size <= MAX_BYTES
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert not any(cell.outputs or cell.execution_count for cell in code)
  assert "find_spec" in code[0].source, "the first cell installs the package when it is missing"
