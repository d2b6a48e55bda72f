"""Adam: PyTorch's, and the kernel's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.training import backends, networks
from common.training.adam import Adam
from common.training.kernel import build


def test_a_step_is_that_of_pytorch():
    weights, other = (torch.nn.Parameter(torch.linspace(-1, 1, 50)) for _ in range(2))
    ours, theirs = Adam([weights], 0.01), torch.optim.Adam([other], lr=0.01, fused=True)
    for number in range(5):
        gradient = torch.sin(torch.arange(50.0) + number)
        ours.gradient.copy_(gradient)
        other.grad = gradient
        ours.step()
        theirs.step()
    assert torch.equal(weights, other)


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(("weight_decay", "dropout"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.5)])
def test_the_kernel_updates_as_pytorch_does(monkeypatch, weight_decay, dropout):
    x, y = torch.randn(40, 3, 30), (torch.arange(40) % 2).float()
    masks = [F.dropout(torch.ones(40, 16), 0.5)]
    monkeypatch.setattr(backends.F, "dropout", lambda ones, p: masks.pop(0))
    made = [networks.build_network("test", channels=3, seed=1, dropout=dropout) for _ in range(2)]
    adams = [Adam(list(network.parameters()), 0.01, weight_decay) for network in made]
    masks += [mask.contiguous() for mask in masks[0].split(16)]
    backends.backend_for(made[0]).train(x, y, [16, 16, 8], adams[0])
    for xb, yb in zip(x.split(16), y.split(16), strict=True):
        backends.backend_for(made[1]).gradient(xb, yb)
        adams[1].step()
    assert adams[0].state["step"] == 3
    for one, other in zip(made[0].parameters(), made[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
