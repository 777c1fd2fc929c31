"""`python bench/attention_core.py`: GF/s of the attention core and its share of the FMA peak.

Forward and backward of softmax attention (beta 0, no division: the kernels without statistics),
each the fastest of many runs. bfloat16 is set against twice the float32 peak, the rate of its
dot products.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import kktorch  # noqa: E402
import torch  # noqa: E402
from harness import fma_peak  # noqa: E402

SHAPES = ["16x8x96x64", "64x3x197x64", "16x8x512x64", "4x8x1024x64", "8x8x1751x32", "1x8x4096x128"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="per shape and dtype")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    peak = fma_peak(torch.float32) / 1e9
    print(f"{arguments.threads} threads, FMA peak {peak:.0f} GF/s (float32)")
    print("| dtype | shape | forward GF/s | backward GF/s |\n|---|---|---|---|")
    for dtype, factor in ((torch.float32, 1), (torch.bfloat16, 2)):
        for shape in SHAPES:
            rates = [
                f"{rate:.0f} ({rate / (peak * factor):.0%})"
                for rate in _rates(shape, dtype, arguments.seconds)
            ]
            print(f"| {str(dtype).removeprefix('torch.')} | {shape} | {rates[0]} | {rates[1]} |")


def _rates(shape: str, dtype: torch.dtype, seconds: float) -> tuple[float, float]:
    batch, heads, length, width = map(int, shape.split("x"))
    q, k, v, grad = torch.randn(4, batch, heads, length, width).to(dtype).unbind()
    inputs = [t.clone().requires_grad_() for t in (q, k, v)]
    product = 2e-9 * batch * heads * length**2 * width  # GFLOP of one T x T x D product
    forward, backward = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(forward) < 3:
        start = time.perf_counter()
        out = kktorch.attention_bn(*inputs, beta_value=0.0, use_std=False)
        middle = time.perf_counter()
        torch.autograd.grad(out, inputs, grad)
        forward.append(middle - start)
        backward.append(time.perf_counter() - middle)
    return 2 * product / min(forward), 5 * product / min(backward)


if __name__ == "__main__":
    main()
