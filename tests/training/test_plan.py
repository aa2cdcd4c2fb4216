from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from typing import Any
from unittest.mock import Mock

import flax.linen as nn
import jax
import pytest

from gamax import cli
from gamax.blocks import Conv
from gamax.config import DataConfig, Experiment, ModelConfig, TrainingConfig, stages
from gamax.errors import UserError
from gamax.training import plan, sharding
from gamax.training.plan import plan_step, planned_devices, planned_mesh, step_multiply_adds
from gamax.training.program import collectives


class Net(nn.Module):
    """As little as a network can be: 84 parameters, 81 multiply-adds a pixel."""

    input_channels: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + Conv(3)(x)


@pytest.fixture
def small_network(monkeypatch):
    monkeypatch.setattr(plan, "create_model", lambda name, **_: Net())


def test_products_are_those_of_the_loss_of_training():
    class TwiceInTraining(Net):
        def training_loss(self, inputs: Any, targets: Any, keys: Any, progress: Any, loss: Any) -> Any:
            return loss(self(self(inputs)), targets), {}

    for network, calls in ((Net(), 1), (TwiceInTraining(), 2)):
        params = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"))
        assert step_multiply_adds(network, params["params"], 8, 5) == 3 * calls * 5 * 64 * 81


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        # A tuple is one exchange of several arrays; a scalar is an array too.
        (
            "  %all-reduce.3 = (f32[3,3,64]{2,1,0:T(8,128)S(1)}, f32[]{:T(128)}, /*index=2*/bf16[7]{0:T(256)(2,1)}) "
            "all-reduce(%a, %b, /*index=2*/%c), channel_id=4, replica_groups={{0,1}}, to_apply=%add",
            {"all-reduce": (1, 3 * 3 * 64 * 4 + 4 + 7 * 2)},
        ),
        # Begun and done: what begins it names its operand too, or flags; the result stands at the end.
        (
            "  %start = (u8[4,1,256,3]{3,2,1,0}, u8[4,1,256,3]{3,2,1,0}, u32[]{:S(2)}, u32[]{:S(2)}) "
            "collective-permute-start(%x), channel_id=2, source_target_pairs={{1,0},{2,1}}\n"
            "  ROOT %done = u8[4,1,256,3]{3,2,1,0} collective-permute-done(%start)",
            {"collective-permute": (1, 4 * 256 * 3)},
        ),
        (
            "  %all-gather-start = ((f32[2]{0}, f32[4,8]{1,0}), (f32[8]{0}, f32[16,8]{1,0})) "
            "all-gather-start(%x, %y), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}\n"
            "  %all-gather-done = (f32[8]{0}, f32[16,8]{1,0}) all-gather-done(%all-gather-start)",
            {"all-gather": (1, 8 * 4 + 16 * 8 * 4)},
        ),
        # Cut up and fused into two computations of a TPU; the channel says that it is one.
        (
            "%fused_computation.1 (p: bf16[1,64]) -> (bf16[1,64], bf16[4,64], u32[]) {\n"
            "  %all-gather.1 = bf16[4,64]{1,0} all-gather(%p), channel_id=3, dimensions={0}\n"
            '  ROOT %c = (bf16[1,64], bf16[4,64], u32[]) custom-call(%all-gather.1), target="AsyncCollectiveStart"\n'
            "}\n\n"
            "%async_collective_fusion.2 (p: bf16[1,64], q: bf16[4,64]) -> bf16[4,64] {\n"
            "  %all-gather.2 = bf16[4,64]{1,0:S(1)} all-gather(%p), channel_id=3, dimensions={0}\n"
            "}\n\n"
            "ENTRY %main (p: bf16[1,64]) -> bf16[4,64] {\n"
            "  %all-gather.3 = bf16[8,64]{1,0} all-gather(%p), channel_id=5, dimensions={0}\n"
            "  %fusion.2 = bf16[4,64]{1,0} fusion(%p, %q), kind=kCustom, calls=%async_collective_fusion.2\n"
            "}",
            {"all-gather": (2, 4 * 64 * 2 + 8 * 64 * 2)},
        ),
        # A reduce-scatter of a TPU, behind which comes an all-reduce that is one.
        (
            "%all-reduce-scatter.9 (input: bf16[256,128]) -> bf16[64,128] {\n"
            "  %all-reduce.2 = bf16[256,128]{1,0} all-reduce(%input), channel_id=1, to_apply=%add.1\n"
            "  ROOT %slice = bf16[64,128]{1,0} dynamic-slice(%all-reduce.2, %m, %c), dynamic_slice_sizes={64,128}\n"
            "}\n\n"
            "ENTRY %main (p: bf16[256,128]) -> bf16[64,128] {\n"
            "  %fusion.1 = bf16[64,128]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.9\n"
            "  %all-reduce.3 = f32[5]{0} all-reduce(%q), channel_id=2, to_apply=%add.1\n"
            "}",
            {"all-reduce": (1, 20), "reduce-scatter": (1, 64 * 128 * 2)},
        ),
        # Not on one channel: each counts.
        (
            "  %a = pred[6]{0} all-to-all(%x), replica_groups={{0,1}}\n"
            "  %b = s4[6]{0} all-to-all(%y), replica_groups={{0,1}}\n"
            "  %c = f32[6]{0} reduce(%all-reduce, %zero), to_apply=%add\n"
            "  %d = f32[6]{0} ragged-all-to-all(%z), channel_id=1",
            {"all-to-all": (2, 12), "ragged-all-to-all": (1, 24)},
        ),
    ],
)
def test_exchanges_in_a_compiled_program_are_counted_with_their_bytes(program, expected):
    assert collectives(program) == expected


def test_the_tpu_compiler_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gamax\[tpu\]'"):
        planned_devices("v5e:4x4")


def test_a_generation_of_tpus_whose_memory_is_not_known_is_refused():
    with pytest.raises(UserError, match="'v9:4x4' is not a TPU slice; write v4, v5e, v5p, v6e"):
        planned_devices("v9:4x4")


def test_the_verb_plans_for_the_devices_that_are_there(small_network, tmp_path, monkeypatch, capsys):
    config, figures = tmp_path / "mine.py", tmp_path / "figures.jsonl"
    config.write_text(
        "from gamax.config import *\n"
        "experiment = Experiment(data=DataConfig(dataset='sidd', patch_size=16), training=TrainingConfig(batch_size=4))"
    )
    options = ["--meshes", "8,1,1", "4,1,2", "-o", str(figures), "--", "--training.batch-size", "8"]
    monkeypatch.setattr(sys, "argv", ["gamax", "train-plan", str(config), *options])
    cli.main()

    whole, rows = map(json.loads, figures.read_text().splitlines())
    for row in (whole, rows):
        assert (row["configuration"], row["topology"], row["devices"]) == ("mine", None, 8)
        assert (row["batch_size"], row["patch_size"], row["gradient_accumulation"]) == (8, 16, 1)
        assert row["fits"] is True
        assert row["unplanned"] == []
        # Forwards and for two gradients, of an eighth of eight images of 16x16 pixels.
        assert row["flops_of_products"] == 3 * 2 * 81 * 256
    # Parameters and two moments of 84 values each, and the images of one crop.
    assert 3 * 84 * 4 + 2 * 16 * 16 * 3 <= whole["state_and_batch_bytes"] < 3 * 84 * 4 + 2 * 16 * 16 * 3 + 100
    assert list(whole["collectives"]) == ["all-reduce"]
    assert 84 * 4 <= whole["collectives"]["all-reduce"]["bytes"] < 84 * 4 + 100
    # One row from either side, forwards and for the gradient.
    assert rows["mesh"] == {"data": 4, "fsdp": 1, "rows": 2}
    assert "collective-permute" in rows["collectives"]
    printed = capsys.readouterr().out
    assert "mine: the devices that are here, 8 x cpu" in printed
    assert "compiling the step of 8 crops of 16 pixels for data 4, fsdp 1, rows 2 ..." in printed


def experiment(batch_size: int, gradient_accumulation: int | str = "auto") -> Experiment:
    training = TrainingConfig(batch_size=batch_size, gradient_accumulation=gradient_accumulation)
    return Experiment(data=DataConfig(patch_size=16), training=training)


def planned(config: Experiment, device_bytes: int) -> dict:
    devices, _ = planned_devices(None)
    (stage,) = stages(config)
    return plan_step(config, stage, planned_mesh(config, stage, (8, 1, 1), devices, device_bytes), device_bytes)


REFUSAL = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (23.17G) exceeds "
    "available HBM (15.75G)."
)


@pytest.fixture
def compiler_that(monkeypatch):
    """Makes the compiler answer with the bytes of temporaries, or fail with a message, one after the other."""

    def answers(*outcomes: int | str) -> None:
        remaining = iter(outcomes)

        def compiled(*_: object) -> Mock:
            outcome = next(remaining)
            if isinstance(outcome, str):
                raise jax.errors.JaxRuntimeError(outcome)
            program = Mock()
            program.memory_analysis.return_value = Mock(
                argument_size_in_bytes=0, temp_size_in_bytes=outcome, generated_code_size_in_bytes=0
            )
            program.cost_analysis.return_value = {"flops": 1.0, "bytes accessed": 1.0}
            program.as_text.return_value = ""
            return program

        monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)

    return answers


def test_the_batch_is_divided_when_the_compiler_refuses_the_whole(small_network, compiler_that):
    compiler_that(REFUSAL, 12 * 2**30)
    # At 23.2 GiB for the whole, two parts may fit.
    row = planned(experiment(64), 16 * 2**30)
    assert (row["gradient_accumulation"], row["temporary_bytes"], row["fits"]) == (2, 12 * 2**30, True)
    # At 30 GiB for two parts, four cannot fit, and are not tried.
    compiler_that(REFUSAL, 30 * 2**30, 12 * 2**30)
    assert planned(experiment(64), 16 * 2**30)["gradient_accumulation"] == 8


class PriorNet(Net):
    """The same with a prior."""

    input_channels: int = 6
    prior: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x[..., :3] + Conv(3)(x)


def test_a_network_with_a_prior_is_planned_with_its_crops(monkeypatch):
    monkeypatch.setattr(plan, "create_model", lambda name, **_: PriorNet())
    config = experiment(8)
    with pytest.raises(UserError, match=r"this PriorNet takes a diffusion prior behind its input: set data.prior"):
        planned(config, 2**30)
    row = planned(dataclasses.replace(config, data=DataConfig("pairs", patch_size=16, prior="prior")), 2**30)
    # Parameters and two moments of 165 values each, and the images of one crop: six channels of 16 bits, three of 8.
    expected = 3 * 165 * 4 + 16 * 16 * (6 * 2 + 3)
    assert expected <= row["state_and_batch_bytes"] < expected + 100


def test_a_step_that_does_not_fit_is_reported_with_what_it_would_need(small_network, compiler_that):
    compiler_that(REFUSAL)
    row = planned(experiment(64, gradient_accumulation=1), 16 * 2**30)
    assert row["fits"] is False
    assert "needs 23.2 GiB on each device, in 1 part(s), of 16.0; choose" in row["refused"]
    assert "training.gradient_accumulation auto" in row["refused"]
    # It compiles, and does not fit.
    compiler_that(17 * 2**30)
    assert "needs 17.0 GiB on each device, one crop after the other" in planned(experiment(8), 16 * 2**30)["refused"]


def test_other_errors_of_the_compiler_are_not_taken_for_a_lack_of_memory(small_network, compiler_that):
    compiler_that("INTERNAL: something broke in 16.0G of code")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something broke"):
        planned(experiment(8), 16 * 2**30)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="without libtpu: install the extra 'tpu'")
@pytest.mark.parametrize(
    ("shape", "exchanged"),
    [
        ((4, 1, 1), {"all-reduce"}),
        ((1, 4, 1), {"all-reduce", "all-gather"}),  # and sums in parts, as a ring or not
        ((1, 1, 4), {"all-reduce", "collective-permute"}),
    ],
)
def test_a_step_compiles_for_a_tpu_that_is_not_there(shape, exchanged, monkeypatch):
    # So that arrays of this small network are split too.
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 2**8)
    chosen = ModelConfig("gama_ir_tiny", {"depth": 3, "levels": 1}, dtype="bfloat16")
    config = Experiment(model=chosen, data=DataConfig(patch_size=128), training=TrainingConfig(batch_size=4))
    devices, device_bytes = planned_devices("v5e:2x2")
    (stage,) = stages(config)
    row = plan_step(config, stage, planned_mesh(config, stage, shape, devices, device_bytes), device_bytes)
    assert (row["device"], row["device_bytes"], row["fits"]) == ("TPU v5 lite", 16 * 2**30, True)
    assert exchanged <= set(row["collectives"])
    assert row["unplanned"] == []
