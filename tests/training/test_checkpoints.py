from __future__ import annotations

import errno
import math
import resource
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gamax.errors import UserError
from gamax.training.checkpoints import Checkpoints, checksum
from gamax.training.sharding import make_mesh, replicated, state_sharding

WHOLE = replicated(make_mesh((1, 1, 1), jax.devices()[:1]))


def make_state(seed: int, width: int = 8) -> dict[str, Any]:
    """One leaf of each kind that a training state has, none of which compresses to nothing."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(3, 3, width, width)).astype(np.float32)
    return jax.device_put(
        {
            "step": jnp.int32(seed),
            "params": {"kernel": jnp.asarray(numbers), "bias": jnp.asarray(numbers[0, 0, 0])},
            "moment": jnp.asarray(numbers[1], jnp.bfloat16),
            "key": jax.random.key(seed),
            "average": None,
        },
        WHOLE,
    )


def words(state: Any) -> dict[str, bytes]:
    leaves = jax.tree.leaves_with_path(state)
    raw = {
        jax.tree_util.keystr(path): jax.random.key_data(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for path, leaf in leaves
    }
    return {path: np.asarray(leaf).tobytes() for path, leaf in raw.items()}


def shardings_of(state: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def checkpoints(folder: Path, kept: int = 3, kept_every: int | None = None) -> closing[Checkpoints]:
    return closing(Checkpoints(folder, kept=kept, kept_every=kept_every))


def restore(folder: Path, like: Any = None) -> tuple[Any, dict[str, Any]] | None:
    like = make_state(0) if like is None else like
    with checkpoints(folder) as opened:
        return opened.restore(jax.eval_shape(lambda: like), shardings_of(like))


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with checkpoints(folder) as opened:
        for step in (1, 2):
            opened.save(step, make_state(step), {"seconds": step / 7, "loss": math.nan})
    return folder


@pytest.fixture
def two(two_saved, tmp_path) -> Path:
    return shutil.copytree(two_saved, tmp_path / "checkpoints")


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "checkpoints") is None


def test_what_was_saved_last_comes_back_to_the_bit(two):
    state, progress = restore(two)
    assert words(state) == words(make_state(2))
    assert progress["seconds"] == 2 / 7
    assert math.isnan(progress["loss"])
    assert not (two.parent / "damaged_checkpoints").exists()


def test_a_state_that_is_given_away_after_it_was_saved_is_written_as_it_was(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)
    state = jax.device_put(np.random.default_rng(0).normal(size=2**20).astype(np.float32), WHOLE)
    before = np.array(state)
    with checkpoints(tmp_path) as opened:
        opened.save(1, {"leaf": state}, {})
        jax.block_until_ready(overwrite(state))
    restored, _ = restore(tmp_path, {"leaf": jnp.zeros(2**20, device=WHOLE)})
    np.testing.assert_array_equal(restored["leaf"], before)


@pytest.mark.parametrize(("saved_on", "restored_on"), [((2, 4, 1), (8, 1, 1)), ((1, 1, 1), (1, 8, 1))])
def test_the_same_bits_come_back_on_another_mesh(tmp_path, saved_on, restored_on):
    def on(shape: tuple[int, int, int]) -> Any:
        # Wide enough to be split over `fsdp`.
        state = make_state(1, width=64)
        return jax.device_put(state, state_sharding(make_mesh(shape, jax.devices()[: np.prod(shape)]), state))

    with checkpoints(tmp_path) as opened:
        opened.save(1, on(saved_on), {})
    like = on(restored_on)
    restored, _ = restore(tmp_path, like)
    assert words(restored) == words(like)
    assert shardings_of(restored) == shardings_of(like)


def test_the_latest_the_best_and_every_tenth_are_kept_also_after_a_restart(tmp_path):
    state = {"step": jnp.int32(0)}
    with checkpoints(tmp_path, kept=2, kept_every=10) as opened:
        for step, score in ((2, 5.0), (4, float("nan")), (6, 30.0), (8, None), (10, 7.0), (12, None), (14, None)):
            opened.save(step, state, {}, score)
    assert steps(tmp_path) == [6, 10, 12, 14]
    with checkpoints(tmp_path, kept=2, kept_every=10) as opened:
        opened.save(16, state, {})
        opened.save(18, state, {}, 31.0)
        opened.save(20, state, {})
        opened.save(22, state, {}, 29.0)
    assert steps(tmp_path) == [10, 18, 20, 22]


def test_what_a_kill_left_unfinished_is_removed(two):
    (two / "3.orbax-checkpoint-tmp").mkdir()
    (two / "3.orbax-checkpoint-tmp/part").write_text("cut o")
    assert words(restore(two)[0]) == words(make_state(2))
    assert sorted(path.name for path in two.iterdir()) == ["1", "2"]


def test_a_step_is_not_saved_twice(two):
    with checkpoints(two) as opened:
        opened.save(2, make_state(5), {})
    assert words(restore(two)[0]) == words(make_state(2))


def test_flipped_bits_are_found_in_every_file_or_change_nothing(two):
    rng = np.random.default_rng(0)
    before, after = words(make_state(1)), words(make_state(2))
    aside = two.parent / "damaged_checkpoints" / "2"
    for path in sorted(path for path in (two / "2").rglob("*") if path.is_file()):
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        state = words(restore(two)[0])
        if aside.exists():
            assert state == before
            aside.rename(two / "2")
        else:
            assert state == after
            assert path.parent.name != "progress" or path.name != "metadata"
        path.write_bytes(content)


def test_numbers_that_are_not_those_that_were_saved_are_found(two, capsys):
    # As flipped bits among the numbers, which TensorStore reads without complaint.
    with checkpoints(two.parent / "other") as opened:
        opened.save(2, make_state(2) | {"moment": make_state(3)["moment"]}, {})
    shutil.rmtree(two / "2/state")
    shutil.copytree(two.parent / "other/2/state", two / "2/state")
    assert words(restore(two)[0]) == words(make_state(1))
    assert "the checkpoint of step 2 is damaged (the checksum of moment is wrong)" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(two, damage, capsys):
    path = max((two / "2").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            shutil.rmtree(two / "2" / "state")
    like = make_state(0)
    with checkpoints(two) as opened:
        state, progress = opened.restore(like, shardings_of(like))
        assert words(state) == words(make_state(1))
        assert progress["seconds"] == 1 / 7
        said = capsys.readouterr().out
        assert "the checkpoint of step 2 is damaged (" in said
        assert "that of step 1 is used" in said
        assert (two.parent / "damaged_checkpoints/2/progress").is_dir()
        # The way is free for the step that has to be made again.
        opened.save(2, make_state(2), {"seconds": 3.0})
    assert restore(two)[1] == {"seconds": 3.0}


def test_if_all_are_damaged_nothing_is_moved_and_training_does_not_start_anew(two):
    for step in (1, 2):
        (two / f"{step}/progress/metadata").write_text("{}")
    with pytest.raises(UserError, match=r"none of the 2 checkpoint\(s\) .*step 2: .*another --logging.run-dir"):
        restore(two)
    assert steps(two) == [1, 2]


def test_a_checkpoint_of_another_network_is_no_damage(two):
    with pytest.raises(UserError, match=r"step 2 .* another network .*'moment' is \['bfloat16', \[3, 8, 8\]\] there"):
        restore(two, make_state(0, width=16))
    assert steps(two) == [1, 2]


def test_storage_that_fails_for_a_while_is_told_of_and_does_not_end_training(two, capsys):
    away = two.with_name("away")
    with checkpoints(two) as opened:
        two.rename(away)
        two.write_text("not a folder")
        opened.save(3, make_state(3), {})
        opened.save(4, make_state(4), {})
        assert opened.failed == 2
        said = capsys.readouterr().out
        assert said.count("training goes on") == 2
        assert f"the checkpoint of step 3 could not be written to '{two}' (Not a directory); training goes on" in said
        two.unlink()
        away.rename(two)
        opened.save(5, make_state(5), {})
        opened.save(6, make_state(6), {})
        assert opened.failed == 0
    assert steps(two) == [2, 5, 6]
    assert words(restore(two)[0]) == words(make_state(6))


def test_a_file_that_the_disk_cannot_take_is_told_of_and_the_last_one_stays(two, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = make_state(3, width=128)
    with checkpoints(two, kept=1) as opened:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        try:
            opened.save(3, state, {})
            with pytest.raises(UserError, match=r"step 3 could not be written .*\(File too large\); mend that"):
                opened.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "(File too large); training goes on, the last complete one is of step 2" in capsys.readouterr().out
    assert steps(two) == [1, 2]
    with checkpoints(two, kept=1) as opened:
        opened.save(3, state, {})
    assert [path.name for path in two.iterdir()] == ["3"]


def test_a_checkpoint_that_cannot_be_removed_is_no_checkpoint_that_failed(two, capsys, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ocp.path.deleter.PathDeleter, "delete", refuse)
    with checkpoints(two, kept=1) as opened:
        opened.save(3, make_state(3), {})
    assert "a checkpoint before that of step 3 could not be removed (Permission denied)" in capsys.readouterr().out
    assert words(restore(two)[0]) == words(make_state(3))


def test_errors_of_the_caller_are_not_taken_for_those_of_the_storage(two):
    with checkpoints(two) as opened:
        with pytest.raises(TypeError, match="not JSON serializable"):
            opened.save(3, make_state(3), {"seconds": Path()})
        with pytest.raises(ValueError, match="empty"):
            opened.save(3, {}, {})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(UserError, match=r"run/checkpoints' cannot hold checkpoints \(Not a directory\)"):
        Checkpoints(tmp_path / "run/checkpoints", kept=1, kept_every=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_the_checksum_changes_with_every_bit(dtype):
    rng = np.random.default_rng(0)
    array = np.asarray(rng.integers(0, 100, (2, 3)), dtype)
    seen = {int(checksum(array))}
    for bit in range(8 * array.nbytes):
        raw = bytearray(array.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        seen.add(int(checksum(np.frombuffer(bytes(raw), array.dtype).reshape(2, 3))))
    assert len(seen) == 8 * array.nbytes + 1


def test_the_checksum_finds_exchanged_elements_and_pairs_of_signs():
    array = jnp.arange(1.0, 7.0).reshape(2, 3)
    changed = [array, array[::-1], array[:, ::-1], -array, array.at[:, 0].multiply(-1), array.at[0, :2].multiply(-1)]
    assert len({int(checksum(each)) for each in changed}) == len(changed)


def test_the_checksum_of_a_key_is_that_of_its_words():
    key = jax.random.key(7)
    assert checksum(key) == checksum(jax.random.key_data(key))
    assert checksum(key) != checksum(jax.random.key(8))
