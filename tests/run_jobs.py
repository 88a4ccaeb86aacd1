"""`python tests/run_jobs.py JOBS`: runs the command lines of a JSON file one after another in this process, a rank of several or alone."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mimicvideo.cli import MimicVideoCLI

if __name__ == "__main__":
    for argv in json.loads(Path(sys.argv[1]).read_text()):
        print("job", *argv, flush=True)
        MimicVideoCLI(args=argv)
