"""One new token for every sequence of a batch, without gradients: the token is written to the cache
and attends to all of it. Shapes are batch x heads x length x width, float32 caches of 512 MiB and
bfloat16 ones of half, larger than the last-level cache, so that the time is that of reading them.
`fold + SDPA` updates mean and variance of the keys and calls the stock attention with the folded
query; `fold + matmul` forms the probabilities by two matrix products; `SDPA` is without BN. The
ceiling is the best rate at which 512 MiB are summed, or multiplied as a matrix with a vector, by
all threads.
"""

import dataclasses
import functools

import attention
import kktorch
import torch
import torch.nn.functional as F
from harness import TOTAL, Case, Contender

NAME = "DECODE"
TITLE = "Decoding with Attention-BN"
SUBJECT = "kktorch"
MAIN_PEER = "fold + SDPA"
PRICE = "SDPA"
GROUPS = ["dtype", "variant"]
ROW = "shape"
CEILING = "B/s"
PLOTS = ["ratios"]
DTYPES = attention.DTYPES
VARIANTS = {"std": True}  # is the standard deviation divided by?
_EPS = 1e-5


@dataclasses.dataclass
class State:
    """One token and the cache that it completes."""

    query: torch.Tensor  # [B, H, 1, D], as the next two
    key: torch.Tensor
    value: torch.Tensor
    keys: torch.Tensor  # [B, H, N, D]; the last row is written in every step
    values: torch.Tensor
    mean: torch.Tensor  # [B, H, D], of the keys before the last
    m2: torch.Tensor  # sum of their squared deviations


def shapes(variant: str, quick: bool) -> list[str]:
    return ["2x2x33x16"] if quick else ["16x16x4096x64", "16x8x4096x128"]


def peers(shape: str, variant: str) -> list[str]:
    return [MAIN_PEER, PRICE, f"compile({MAIN_PEER})", "fold + matmul"]


def work(shape: str, variant: str, itemsize: int = 4) -> dict[str, float]:
    """Bytes of keys and values."""
    batch, heads, tokens, width = attention.sizes(shape)
    return {TOTAL: 2 * batch * heads * tokens * width * itemsize}


def case(shape: str, dtype: str, variant: str) -> Case:
    state = _state(shape, DTYPES[dtype])
    torch._dynamo.reset()
    functions = {
        SUBJECT: _kktorch, MAIN_PEER: _fold_sdpa, "fold + matmul": _fold_matmul, PRICE: _sdpa
    }  # fmt: skip

    def make(name: str):
        plain = name.removeprefix("compile(").removesuffix(")")
        function = functions[plain]
        if plain != name:
            function = torch.compile(function, dynamic=False)

        @torch.no_grad()
        def step(_):
            return function(**vars(state))

        return Contender(name, {TOTAL: step})

    def check(contenders):
        results = {c.name: {"out": c.phases[TOTAL](None)} for c in contenders if c.name != PRICE}
        return attention.compare(results, functools.partial(_exact, state), state.query)

    return Case(
        key={"shape": shape, "dtype": dtype, "variant": variant},
        subject=make(SUBJECT),
        peers=[make(name) for name in peers(shape, variant)],
        check=check,
        work=work(shape, variant, DTYPES[dtype].itemsize),
    )


def _state(shape: str, dtype: torch.dtype) -> State:
    batch, heads, tokens, width = attention.sizes(shape)
    generator = torch.Generator().manual_seed(1)

    def draw(n):
        return torch.randn(batch, heads, n, width, generator=generator).to(dtype)

    query, key, value, keys, values = draw(1), draw(1), draw(1), draw(tokens), draw(tokens)
    past = keys[:, :, :-1].float()
    mean, variance = past.mean(2), past.var(2, correction=0)
    return State(query, key, value, keys, values, mean, variance * (tokens - 1))


def _exact(state: State, dtype: torch.dtype) -> attention.Tensors:
    """The formula on the keys with the new one in place, sample by sample."""
    out = torch.empty_like(state.query, dtype=dtype)
    for sample in range(len(out)):
        q, k, v = (t[sample].to(dtype) for t in (state.query, state.keys, state.values))
        k[:, -1:], v[:, -1:] = state.key[sample].to(dtype), state.value[sample].to(dtype)
        mean, variance = k.mean(1, keepdim=True), k.var(1, correction=0, keepdim=True)
        logits = ((q - mean) / (variance + _EPS)) @ (k - mean).transpose(1, 2)
        out[sample] = (logits * q.shape[-1] ** -0.5).softmax(-1) @ v
    return {"out": out}


def _kktorch(query, key, value, keys, values, mean, m2):
    length = torch.full((len(query),), keys.shape[2] - 1)
    return kktorch.attention_bn_decode(
        query, key, value, keys, values, length, mean.clone(), m2.clone(), eps=_EPS
    )


def _append(key, value, keys, values):
    keys[:, :, -1:] = key
    values[:, :, -1:] = value


def _fold(query, key, keys, mean, m2):
    count = keys.shape[2]
    delta = key.squeeze(2) - mean
    mean = mean + delta / count
    m2 = m2 + delta * (key.squeeze(2) - mean)
    folded = (query - mean.unsqueeze(2)) / (m2.unsqueeze(2) / count + _EPS)
    return folded.to(query.dtype)


def _fold_sdpa(query, key, value, keys, values, mean, m2):
    _append(key, value, keys, values)
    return F.scaled_dot_product_attention(_fold(query, key, keys, mean, m2), keys, values)


def _fold_matmul(query, key, value, keys, values, mean, m2):
    _append(key, value, keys, values)
    logits = _fold(query, key, keys, mean, m2) @ keys.transpose(-1, -2)
    return (logits * query.shape[-1] ** -0.5).softmax(-1) @ values


def _sdpa(query, key, value, keys, values, mean, m2):
    _append(key, value, keys, values)
    return F.scaled_dot_product_attention(query, keys, values)
