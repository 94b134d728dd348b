"""Checks that tflite-runtime 2.14 on numpy 1, the last for old devices, computes what ai-edge-litert computes of the same files.

It makes an environment of its own with pip, so it needs a package index, and Python 3.11 or older, for which that package was made.
There, natdeploy's runtime file lies alone beside the models, as on a device. Not part of the test suite for these reasons.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import torch

from natdeploy.latency.blocks import input_shape, parse_block
from natdeploy.runtimes import tflite
from natdeploy.space.catalog import SPACES
from natdeploy.supernet import Subnet, build_block

DEVICE = """
import json
import numpy as np
import tflite
for name, precision, delegate, *shape in json.load(open("plan.json")):
    session = tflite.load(name + ".tflite", shape, 1, precision, delegate)
    (y,) = tflite.run(session, [np.load(f"{name}-{shape[-1]}.npy")])
    print(json.dumps([tflite.version(), np.__version__, y.ravel().tolist(), tflite.placement(session)]))
"""


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    space = SPACES["ofa_mbv3"]
    block = parse_block("mbconv-28x24-m72-o40-k5-s2-se24-hswish")
    modules = {
        "net": (Subnet(space, space.decode(space.lower), 10), (1, 3, 96, 96)),
        "block": (build_block(block), input_shape(block)),
    }
    for module, shape in modules.values():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = 1.0
        module.train()(torch.randn(8, *shape[1:]))  # untrained statistics let signals die out on their way
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        venv.create(folder / "environment", with_pip=True)
        python = str(folder / "environment" / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "tflite-runtime==2.14.0", "numpy<2"], check=True)
        shutil.copy(str(tflite.__file__), folder)
        plan, expected = [], []
        for name, (module, shape) in modules.items():
            for precision in tflite.PRECISIONS:
                file = f"{name}-{precision}"
                path = folder / f"{file}.tflite"
                tflite.convert(module, torch.randn(shape), path, precision=precision, dynamic_size=True)
                for delegate in tflite.DELEGATES:
                    for size in (shape[-1], shape[-1] + 32):
                        x = np.random.default_rng(size).standard_normal((*shape[:2], size, size)).astype(np.float32)
                        np.save(folder / f"{file}-{size}.npy", x)
                        plan.append([file, precision, delegate, *x.shape])
                        with torch.no_grad():
                            right = module.eval()(torch.from_numpy(x)).numpy().ravel()
                        expected.append((right, tflite.run(tflite.load(path, x.shape, 1, precision, delegate), [x])[0].ravel()))
        (folder / "plan.json").write_text(json.dumps(plan))
        (folder / "main.py").write_text(DEVICE)
        lines = subprocess.run([python, "main.py"], cwd=folder, check=True, capture_output=True, text=True).stdout.splitlines()
    for case, line, (right, ours) in zip(plan, lines, expected, strict=True):
        library, numpy, theirs, placement = json.loads(line)
        new, old = (float(np.sqrt(((np.array(each) - right) ** 2).mean() / (right**2).mean())) for each in (ours, theirs))
        places = {where: sum(count for _, each, count in placement if each == where) for where in {each[1] for each in placement}}
        sys.stdout.write(f"{case}: error {old:.1e} in {library}, numpy {numpy}; {new:.1e} in {tflite.version()}; {places}\n")
        assert old < (1e-5 if case[1] == "fp32" else 1.2 * new), case


if __name__ == "__main__":
    main()
