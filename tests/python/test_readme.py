"""The README's Python example is a program that runs."""

import re


def test_the_python_example_runs(root):
    code = re.search(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["out"].shape == (8, 4, 128, 64) and names["q"].grad.isfinite().all()
    assert names["y"].shape == names["scripted"](*[names["torch"].ones(8, 128, 256)] * 3)[0].shape
