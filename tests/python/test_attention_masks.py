"""Patterns for attn_mask, entry by entry."""

import kktorch
import pytest
import torch


@pytest.mark.parametrize("M, N", [(5, 5), (4, 9), (9, 4), (1, 1), (0, 3), (3, 0)])
@pytest.mark.parametrize("width", [0, 1, 3, 20])
@pytest.mark.parametrize("num_global", [0, 1, 2, 20])
def test_local_window_mask(M, N, width, num_global):
    mask = kktorch.local_window_mask(M, N, width, num_global)
    assert mask.shape == (M, N) and mask.dtype == torch.bool
    for i in range(M):
        for j in range(N):
            allowed = abs(i - j) <= width or i < num_global or j < num_global
            assert mask[i, j].item() == allowed, (i, j)


def test_num_global_defaults_to_none_and_device_is_the_callers():
    assert torch.equal(kktorch.local_window_mask(3, 4, 0), torch.eye(3, 4, dtype=torch.bool))
    assert kktorch.local_window_mask(3, 4, 1, device="meta").device.type == "meta"


def test_a_row_sees_its_window_only():
    q, k, v = torch.randn(3, 1, 2, 6, 4, dtype=torch.float64).unbind()
    mask = kktorch.local_window_mask(6, 6, 1, num_global=1)
    out = kktorch.attention_bn(q, k, v, attn_mask=mask, use_std=False, beta_value=0.0)
    seen = [0, 3, 4, 5]
    alone = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, 4:5], k[:, :, seen], v[:, :, seen]
    )
    torch.testing.assert_close(out[:, :, 4:5], alone)


@pytest.mark.parametrize("sizes", [(-1, 3, 1, 0), (3, -1, 1, 0), (3, 3, -1, 0), (3, 3, 1, -1)])
def test_negative_sizes_are_refused(sizes):
    got = ", ".join(map(str, sizes))
    message = f"local_window_mask: expected M, N, width, num_global >= 0, but got {got}"
    with pytest.raises(ValueError, match=message):
        kktorch.local_window_mask(*sizes)
