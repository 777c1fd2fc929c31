"""Layers and models over ``torch.ops.kktorch``: the Python form of the C++ modules in ``models/``.

Options, parameter names, initial values and results are those of the C++ modules, so a checkpoint
written by either side loads in the other (``strict=True``). All of them work under
``torch.jit.script``, ``torch.compile`` and ``torch.export``.
"""

from kktorch.nn._attention_parameters import default_scales
from kktorch.nn.att_svm_model import AttSvmGradient, AttSvmModel
from kktorch.nn.attention_bnsh import AttentionBNSH
from kktorch.nn.convex_attention import ConvexAttention, ConvexAttentionSeq, SoftmaxAttention
from kktorch.nn.encoder import Encoder, EncoderOptions
from kktorch.nn.encoder_layer import EncoderLayer
from kktorch.nn.kv_cache import KVCache
from kktorch.nn.small_vit import SmallViT
from kktorch.nn.time_series_classifier import TimeSeriesClassifier
from kktorch.nn.token_classifier import TokenClassifier
from kktorch.nn.token_conv import TokenConv
from kktorch.nn.token_norm import TokenNorm

__all__ = [
    "AttSvmGradient",
    "AttSvmModel",
    "AttentionBNSH",
    "ConvexAttention",
    "ConvexAttentionSeq",
    "Encoder",
    "EncoderLayer",
    "EncoderOptions",
    "SmallViT",
    "SoftmaxAttention",
    "TimeSeriesClassifier",
    "TokenClassifier",
    "TokenNorm",
    "KVCache",
    "TokenConv",
    "default_scales",
]
