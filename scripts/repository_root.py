"""Makes the repository's packages importable from its scripts, in any working directory.

``python scripts/NAME.py`` puts ``scripts/`` first into ``sys.path``, but not the repository's root, where
``bert_pretrain``, ``data_prep`` and ``tests`` are. Import this module before them.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
