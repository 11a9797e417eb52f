"""Set before any test module is imported: without a GPU, Triton interprets its kernels.

Triton reads the variable when it is first imported, and torch may import it at any time.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
