"""What the tests of kktorch.nn share."""

import io

import torch
from torch import nn


def padding_mask(lengths: list[int], longest: int) -> torch.Tensor:
    """[B, L], True beyond each length."""
    return torch.arange(longest) >= torch.tensor(lengths).unsqueeze(1)


def randomised(module: nn.Module) -> nn.Module:
    """Random parameters, so that no bias or offset is zero by initialisation; evaluation mode."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module.eval()


def script_round_trip(module: nn.Module) -> torch.jit.ScriptModule:
    """The module scripted, saved and loaded."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    return torch.jit.load(file)
