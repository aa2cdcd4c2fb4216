from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest

from gamax.blocks import Conv
from gamax.config import DataConfig, Experiment, Stage, TrainingConfig, stages
from gamax.errors import UserError
from gamax.models.dmphn import DMPHN
from gamax.training import program
from gamax.training.program import compile_step, describe, device_memory, stage_meshes
from gamax.training.sharding import make_mesh, planned_collectives
from gamax.training.state import abstract_state, initial_state


class Network(Conv):
    """As little as a network can be."""

    input_channels: ClassVar[int] = 3


MODEL = Network(3, 3)
CROPS = {"input": (3, np.uint8), "target": (3, np.uint8)}


def experiment(**training) -> Experiment:
    defaults = {"steps": 10, "batch_size": 8, "loss": "l1"}
    return Experiment(
        data=DataConfig(dataset="paired_folder", patch_size=16, augment=False),
        training=TrainingConfig(**{**defaults, **training}),
    )


def compiled(device_bytes=None, devices=1, **training):
    chosen = experiment(**training)
    mesh = make_mesh((devices, 1, 1), jax.devices()[:devices])
    state = abstract_state(MODEL, chosen)
    return compile_step(MODEL, chosen, stages(chosen)[0], mesh, state, CROPS, device_bytes=device_bytes)


def test_a_step_that_fits_is_not_divided():
    result = compiled(device_bytes=2**30)
    assert result.gradient_accumulation == 1
    # Kernel and bias of 84 numbers, two moments, and the counters and the key of the state.
    assert 3 * 84 * 4 < result.state_bytes < 3 * 84 * 4 + 64
    assert result.bytes_per_device == result.state_bytes + result.temporary_bytes
    assert result.collectives == {}


def test_a_step_that_does_not_fit_is_divided_into_as_few_parts_as_it_takes():
    whole = compiled()
    assert whole.gradient_accumulation == 1
    by_parts = [compiled(gradient_accumulation=parts).bytes_per_device for parts in (1, 2, 4, 8)]
    assert by_parts == sorted(by_parts, reverse=True)
    for parts, needed in zip((1, 2, 4), by_parts, strict=False):
        result = compiled(device_bytes=int(needed / program.HEADROOM) + 1)
        assert result.gradient_accumulation == parts
        assert result.bytes_per_device <= needed


def test_devices_are_counted_before_the_batch_is_divided():
    limit = int(compiled(gradient_accumulation=2).bytes_per_device / program.HEADROOM) + 1
    assert compiled(device_bytes=limit, devices=1).gradient_accumulation == 2
    assert compiled(device_bytes=limit, devices=4).gradient_accumulation == 1


def test_what_never_fits_is_said_with_figures():
    with pytest.raises(UserError, match=r"crops of 16 pixels needs .* GiB on each device.* smaller data.patch_size"):
        compiled(device_bytes=1000)


def test_a_number_of_parts_that_is_asked_for_is_kept():
    assert compiled(device_bytes=1000, gradient_accumulation=4).gradient_accumulation == 4


def test_every_stage_has_its_mesh_in_one_order_of_devices():
    later = (Stage(4, 128, 4), Stage(7, 192, 2), Stage(99, 8, 1))
    chosen = experiment(progressive=later)
    meshes = stage_meshes(MODEL, chosen, abstract_state(MODEL, chosen), 2**34)
    # The stage behind the last step is left out.
    assert [tuple(mesh.shape.values()) for mesh in meshes.values()] == [(8, 1, 1), (4, 1, 2), (2, 1, 4)]
    assert {tuple(mesh.devices.flat) for mesh in meshes.values()} == {tuple(jax.devices())}


def test_rows_of_what_is_cut_into_patches_are_not_divided_unless_asked_for():
    model, chosen = DMPHN((1, 2), (1, 1, 1)), experiment(batch_size=6)
    state = abstract_state(model, chosen)
    with pytest.raises(UserError, match=r"use 6 device\(s\), another batch, or --training\.mesh 2 1 4, where"):
        stage_meshes(model, chosen, state, 2**34)
    ((_, mesh),) = stage_meshes(model, experiment(mesh=(2, 1, 4)), state, 2**34).items()
    assert "collective-permute" not in planned_collectives(mesh, model)


def test_a_step_keeps_the_shardings_of_the_state():
    chosen = experiment(mesh=(2, 4, 1))
    state = abstract_state(MODEL, chosen)
    mesh = next(iter(stage_meshes(MODEL, chosen, state, 2**34).values()))
    result = compile_step(MODEL, chosen, stages(chosen)[0], mesh, state, CROPS)
    batch = jax.device_put({name: np.zeros((8, 16, 16, 3), np.uint8) for name in CROPS}, result.images)
    after, _ = result.step(jax.device_put(initial_state(MODEL, chosen), result.state_shardings), batch)
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == result.state_shardings


def test_parts_must_leave_every_device_as_many_crops():
    with pytest.raises(UserError, match=r"gradient_accumulation 4 does not divide the 2 crop.* use 1 or 2, or 'auto'"):
        compiled(devices=4, gradient_accumulation=4)


def test_exchanges_in_a_loop_count_as_often_as_it_runs():
    once, thrice = (compiled(devices=2, batch_size=12, gradient_accumulation=parts).collectives for parts in (1, 3))
    (count, size), (count_3, size_3) = once["all-reduce"], thrice["all-reduce"]
    # The gradient of 84 numbers and the loss.
    assert size == 4 * 85
    assert (count_3, size_3) == (3 * count, 3 * size)


def test_the_description_names_mesh_bytes_and_exchanges():
    result = compiled(devices=4)
    lines = describe(result, 3.2, 2**34)
    assert lines[0].startswith("step of 8 crops of 16 pixels, compiled in 3 s: 4 device(s) as data 4, fsdp 1, rows 1")
    assert lines[0].endswith("of 16.0 GiB")
    count, _ = result.collectives["all-reduce"]
    assert lines[1:] == [f"exchanged between devices in a step: {count} all-reduce (0.0 MiB)"]
    unplanned = dataclasses.replace(result, collectives={"all-to-all": (3, 2**20)})
    assert describe(unplanned, 3.2, 2**34)[-1] == "warning: all-to-all is not what this mesh is meant to exchange"


def test_a_cpu_has_its_share_of_the_memory_of_the_machine():
    assert 2**26 < device_memory(jax.devices()[0]) < 2**44
