"""Start a worker. Run by path (``python …/serving/server.py OPTIONS``), in any Python with the worker's requirements.

It loads the package ``worker`` beside it under a private name and takes this folder off ``sys.path``, so that
neither this project's modules nor the model's own can shadow each other.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_PACKAGE = "_notebooked_worker"


def load_worker(folder: Path) -> ModuleType:
    """Import ``worker`` from a folder as a package of its own, with its submodules reachable by relative import."""
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, folder / "worker" / "__init__.py", submodule_search_locations=[str(folder / "worker")]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"{_PACKAGE}.process")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    sys.exit(load_worker(here).main(sys.argv[1:]))
