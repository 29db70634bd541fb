"""`accelerate launch` with two processes against one, on the CPU: images a second in steady state, the same weights.

Both train the same small DiT on the digits, in pixels, by the command line as a user would; the second half of the
steps is timed from the printed progress. The largest difference of a weight says whether two are one but for rounding.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from benchmarks._line import emit

ROOT = Path(__file__).resolve().parent.parent
STEPS, BATCH = 80, 64
RECIPE = f"""
steps = {STEPS}
batch = {BATCH}
save_every = {STEPS // 2}
objective = "flow"
label_dropout = 0.1
size = 8

[transformer]
in_channels = 1
patch_size = 1
num_layers = 6
num_attention_heads = 4
attention_head_dim = 32
"""
PROGRESS = re.compile(r"network step (\d+)/.* (\d+) s")


def trained(folder: Path, processes: int) -> float:
    """Train into `folder`/out; images a second of the second half."""
    (folder / "recipe.toml").write_text(RECIPE)
    launch = [sys.executable, "-P", "-m"]
    if processes > 1:
        options = ("--multi_gpu", "--num_machines", "1", "--main_process_port", "0")
        fixed = ("--mixed_precision", "no", "--dynamo_backend", "no", "-m")
        launch += ["accelerate.commands.launch", "--num_processes", str(processes), *options, *fixed]
    command = [
        "fewstep.pipeline.cli",
        "train",
        "recipe.toml",
        "--data",
        "digits",
        "--out",
        "out",
        "--checkpoints",
        "kept",
    ]
    ran = subprocess.run(
        [*launch, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    half, whole = (int(seconds) for _, seconds in PROGRESS.findall(ran.stdout))
    return STEPS // 2 * BATCH / max(1, whole - half)


def main() -> None:
    """Measure both, and compare what they made."""
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / str(processes) for processes in (1, 2)]
        for folder in folders:
            folder.mkdir()
        one, two = (trained(folder, i + 1) for i, folder in enumerate(folders))
        first, second = (load_file(next((f / "out" / "transformer").glob("*.safetensors"))) for f in folders)
        apart = max(float((first[name] - second[name]).abs().max()) for name in first)
        made = [json.loads((f / "out" / "card.json").read_text())["processes"] for f in folders]
    assert made == [1, 2]
    emit(
        "training_processes",
        "one process",
        "images/s",
        two,
        one,
        {"threads_per_process": 1, "steps": STEPS, "batch": BATCH, "largest_difference_of_a_weight": apart},
    )


if __name__ == "__main__":
    main()
