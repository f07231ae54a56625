"""The RunPod serverless worker: fetch, edit frames, encode, upload, commit."""

import os

# The threads of a CPU's network sleep while they wait for one another. Spinning takes cores from
# the encoder, and CPU time from a container's quota. torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
