"""What Dagster loads: everything below `defs/`."""

import warnings
from pathlib import Path

import dagster as dg

from wan_orchestration import defs


@dg.definitions
def definitions() -> dg.Definitions:
    # `dg.load_from_defs_folder` does the same, but also parses pyproject.toml twice and describes Dagster's component
    # types as JSON, which takes a third of a second in each run.
    tree = dg.ComponentTree.from_module(defs, project_root=Path(__file__).parents[1])
    with warnings.catch_warnings(action="ignore", category=dg.BetaWarning):
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return tree.build_defs(tree.defs_module_path)
