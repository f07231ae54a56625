"""How much memory the largest legal edits take: of an 8K video, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.gpu_worker.footage import make

LIMIT_BYTES = 2_000_000_000
LARGEST = {"output_width": 7680, "output_height": 4608}
ELLIPSE = {"y": 2000, "radius_x": 4000, "radius_y": 2100, "opacity": 0.9, "fill_opacity": 0.5}
EVERYTHING = {
    "end_time": 0.08,
    "rotation": 10,
    "effect_type": "blur",
    # As large as the picture each, and more than are kept from one pass to the next.
    "highlight_regions": [
        {"start_time": 0, "end_time": 1, "keyframes": [{"x": 4000 + i, **ELLIPSE}]}
        for i in range(6)
    ],
    # Together just within what may be shown at a time.
    "text_layers": [
        {"png_key": "large.png"},
        {
            "text": "WWW",
            "font_size": 1000,
            "outline_width": 50,
            "background_color": "#00ff00",
            "x": 3800,
        },
    ],
}
CAPTION = {"name": "W" * 200, "notes": "W" * 2000, "rating": 5, "tags": ["W" * 60] * 20}
CAPTIONED = {
    "transition": {"type": "dissolve", "duration": 0.04},
    "clips": [{"start_time": 0, "end_time": 0.08, **CAPTION}] * 2,
}


@pytest.mark.abuse
def test_no_legal_edit_takes_two_gigabytes(tmp_path):
    """Each limit of an overlay at once, and captions of an annotation that dissolve into one
    another.
    """
    source = make(
        tmp_path / "8k.mp4",
        *("-f", "lavfi", "-i", "testsrc2=s=8192x4320:r=25:d=0.12"),
        *("-c:v", "libx264", "-preset", "ultrafast"),
    )
    Image.new("RGBA", (4096, 4096), "#ff000080").save(tmp_path / "large.png")
    jobs = [
        {"type": "overlay", "params": LARGEST | EVERYTHING},
        {"type": "annotate", "params": LARGEST | CAPTIONED},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    files = [source, tmp_path, tmp_path / "jobs.json", tmp_path / "out.mp4"]
    run = subprocess.run(
        [sys.executable, "-m", "tests.gpu_worker.appetite", *map(str, files)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
    )
    peaks = {line["type"]: line["peak_bytes"] for line in map(json.loads, run.stdout.splitlines())}
    assert peaks.keys() == {"overlay", "annotate"}, run.stderr
    assert max(peaks.values()) < LIMIT_BYTES, peaks
