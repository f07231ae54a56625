"""What the worker's process does to itself, in a process of its own."""

import subprocess
import sys
from pathlib import Path

CODE = """
import resource, torch
from gpu_worker.host.process import prepare_process
prepare_process()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.zeros(1920, 1080).add_(1)
before = faults()
for _ in range(50):
    torch.zeros(1920, 1080).add_(1)
print(torch.get_num_threads(), (faults() - before) // 50)
"""


def test_a_frames_buffer_is_not_fetched_from_the_system_each_time():
    """Eight megabytes are 2,025 pages; kept, hardly one of them faults again. And one thread does
    it.
    """
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True, check=True
    )
    threads, faults = map(int, done.stdout.split())
    assert (threads, faults < 50) == (1, True)
