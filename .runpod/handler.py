"""What RunPod's Hub looks for in a repository. The image starts the same as a module, `python -m
gpu_worker.handler`.
"""

from gpu_worker.handler import main

if __name__ == "__main__":
    main()
