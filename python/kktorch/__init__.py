"""kktorch: attention layers with optimality certificates, for LibTorch and PyTorch.

Importing the package loads ``libkktorch.so``, which registers the ops in ``torch.ops.kktorch``.

- ``kktorch.attention_bn``, ``kktorch.attention_sh``, ``kktorch.linear_attention`` and their
  relatives: the ops as documented functions; ``kktorch.local_window_mask`` for ``attn_mask``
- ``kktorch.convex``: convex attention, solved to a certified global optimum
- ``kktorch.nn``: layers and models; their checkpoints are those of the C++ modules
- ``kktorch.svm``: attention SVMs with certificates, and the margin tracker of training
- ``kktorch.data``, ``kktorch.run``: `.ts` files, and the run folders of `kktorch train`
- ``python -m kktorch.report``: an HTML page about runs
- ``python -m kktorch.export``: an AOTInductor package of a run
"""

# isort: off  (kktorch.nn is scripted against the ops: the library has to be loaded before it)
from kktorch._library import load_library

__version__ = "0.1.0"

#: Path of the op library that is loaded.
library_path = load_library()

from kktorch import convex, nn, svm  # noqa: E402
from kktorch.functional import (  # noqa: E402
    attention_bn,
    attention_bn_decode,
    attention_bn_ref,
    attention_bn_varlen,
    attention_sh,
    attention_sh_ref,
    linear_attention,
    local_window_mask,
    token_pool,
)

__all__ = [
    "attention_bn",
    "attention_bn_decode",
    "attention_bn_ref",
    "attention_bn_varlen",
    "attention_sh",
    "attention_sh_ref",
    "convex",
    "library_path",
    "linear_attention",
    "local_window_mask",
    "nn",
    "svm",
    "token_pool",
]
