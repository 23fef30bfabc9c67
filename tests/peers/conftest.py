"""Makes ``tests.peers.common`` importable, however pytest is called."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)  # last: nothing of the root may hide an installed package
