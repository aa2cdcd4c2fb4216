"""`train.py`, which also notes which images every process gives to its devices: `train_recorded.py RECORD ARGUMENTS`.

Image number n of the dataset has the value 10 n everywhere. A line of RECORD is `[step, [numbers]]`.
"""

import json
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

from gamax import hosts
from gamax.errors import exit_on_user_error
from gamax.training import loop

record = Path(sys.argv.pop(1))
start, global_batch = loop._start, hosts.global_batch
step = 0


def noted_start(*arguments):
    global step
    state, progress = start(*arguments)
    step = int(state.step)
    return state, progress


def noted_batch(batch, *arguments):
    global step
    step += 1
    with record.open("a") as lines:
        lines.write(json.dumps([step, (batch["target"][:, 0, 0, 0] // 10).tolist()]) + "\n")
    return global_batch(batch, *arguments)


main = runpy.run_path(str(Path(__file__).parents[2] / "train.py"))["main"]
with patch.object(loop, "_start", noted_start), patch.object(hosts, "global_batch", noted_batch), exit_on_user_error():
    main(sys.argv[1:])
