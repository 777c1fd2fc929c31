# %% [markdown]
# The tracker beside a training loop: a layer of softmax attention with weights W on 4 inputs
# of 6 tokens, trained by normalised gradient descent on the logistic loss. At every step it
# says which tokens the layer selects, and brackets the largest margin that W could have with them.
# Training stops once W is certified to point within cosine 0.99 of the max-margin solution, which
# is never computed for that.
#
#     PYTHONPATH=python python examples/python/margin_tracker.py [margin_tracker.svg]

# %% Data: tokens, queries and the fixed head v, all of norm 1, and labels +1 or -1.
import sys

import kktorch
import torch
from kktorch.svm import MarginTracker, bracket_figure
from matplotlib.figure import Figure

torch.manual_seed(0)
n, T, d = 4, 6, 10
unit = torch.nn.functional.normalize
X = unit(torch.randn(n, T, d, dtype=torch.float64), dim=2)
Z, v = (
    unit(torch.randn(n, d, dtype=torch.float64)),
    unit(torch.randn(d, dtype=torch.float64), dim=0),
)
labels = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
scores = labels[:, None] * (X @ v)

# %% The two lines: a tracker of these token sets, and its step in the loop.
tracker = MarginTracker(*kktorch.svm.cross(X, Z))
records = []
W = 0.1 * torch.randn(d, d, dtype=torch.float64)
for step in range(2000):
    # d loss / d logits in closed form; for the selected token it is minus the sum of the others.
    # Autograd's difference of nearly equal numbers loses it once the softmax saturates.
    s = torch.einsum("ntd,de,ne->nt", X, W, Z).softmax(1)
    mean = (s * scores).sum(1, keepdim=True)
    loss = torch.nn.functional.softplus(-mean).mean()
    dlogits = torch.sigmoid(-mean) / n * s * (mean - scores)
    top = s.argmax(1, keepdim=True)
    dlogits = dlogits.scatter(1, top, 0)
    dlogits = dlogits.scatter(1, top, -dlogits.sum(1, keepdim=True))

    record = tracker.step(W=W, dlogits=dlogits.flatten(), score=scores.flatten(), loss=loss.item())
    records.append(record)
    if step % 100 == 0:
        print(f"loss {loss.item():.6f}", record)
    if record.cos_certified > 0.99:
        break

    gradient = torch.einsum("nt,ntd,ne->de", dlogits, X, Z)
    W = W - 1.0 * gradient / gradient.norm()

# %% What was certified, and what solving the problem says.
solution = kktorch.svm.att_svm(*kktorch.svm.cross(X, Z)[:3], record.alpha)
cosine = float((W * solution.w).sum() / (W.norm() * solution.w.norm()))
print(f"stopped at step {step}: selected tokens {record.alpha.tolist()}")
print(f"certified cosine {record.cos_certified:.4f}, true cosine {cosine:.4f}, {solution}")

# %% The bracket closes, and the cosines rise.
figure = Figure(figsize=(6, 6), layout="constrained")
bracket_figure(records, figure.subplots(2, 1, sharex=True))
if len(sys.argv) > 1:
    figure.savefig(sys.argv[1])
