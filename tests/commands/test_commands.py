"""The commands do what the README says."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import scipy.io

from gamax import Restorer, load_weights, save_weights
from gamax.data.images import to_float, to_integers
from gamax.errors import UserError
from gamax.evaluation.protocols import PROTOCOLS

ROOT = Path(__file__).parents[2]
TINY = [
    *("--model.overrides", "width=4", "depth=3", "levels=1", "blocks_per_level=1"),
    *("--data.patch-size", "16", "--training.batch-size", "8"),
    *("--training.steps", "4", "--training.checkpoint-every", "2", "--evaluation.every", "2"),
]


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_a_run_leaves_all_that_describes_it(tiny_workspace):
    run_dir = tiny_workspace / "runs/quickstart"
    result = json.loads((run_dir / "result.json").read_text())
    assert result["protocol"] == "gauss-color-25"
    assert result["images"] == len(result["per_image"]) == 2
    assert result["steps"] == 6
    assert result["seconds"] > 0
    assert result["psnr_input"] == pytest.approx(20.17, abs=0.05)
    assert result["psnr"] == pytest.approx(np.mean([row["psnr"] for row in result["per_image"]]))
    assert 0 < result["ssim"] < 1
    assert len(result["weights_sha256"]) == 64
    assert {"python", "gamax", "jax", "flax"} <= set(result["versions"])
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    assert read(run_dir / "samples/gauss-color-25.png") is not None
    assert list((run_dir / "tensorboard").iterdir())
    assert json.loads((run_dir / "config.json").read_text())["training"]["steps"] == 6
    assert json.loads((run_dir / "environment.json").read_text())[0]["devices"]


def test_the_resolved_configuration_can_be_passed_back(tiny_workspace, tmp_path, train):
    train([str(tiny_workspace / "runs/quickstart/config.json"), "--logging.run-dir", str(tmp_path / "again")])
    weights = [folder / "weights.safetensors" for folder in (tiny_workspace / "runs/quickstart", tmp_path / "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_pairs_in_a_folder_train_and_are_scored_against_their_inputs(tmp_path, train):
    rng = np.random.default_rng(0)
    errors = []
    for part in ("train", "test"):
        for name in ("a", "b"):
            target = rng.integers(0, 256, (48, 64, 3), np.uint8)
            degraded = np.clip(target + rng.normal(0, 20, target.shape), 0, 255).astype(np.uint8)
            for folder, image in (("input", degraded), ("target", target)):
                (tmp_path / "pairs" / part / folder).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(tmp_path / "pairs" / part / folder / f"{name}.png"), image)
            errors.append(np.mean((degraded.astype(float) - target) ** 2))
    folders = ["--data.source", str(tmp_path / "pairs"), "--data.prepared-dir", str(tmp_path / "prepared")]
    train([str(ROOT / "configs/paired.py"), *TINY, *folders, "--logging.run-dir", str(tmp_path / "run")])
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["protocol"] == "paired-rgb"
    expected = np.mean([10 * np.log10(255**2 / error) for error in errors[2:]])
    assert result["psnr_input"] == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def score(monkeypatch):
    """The program `eval.py`, run in this process."""
    script = str(ROOT / "eval.py")

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")

    return run


def test_a_network_with_a_prior_trains_and_is_scored(tmp_path, train, score):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            for folder in (f"pairs/{part}/input", f"pairs/{part}/target", f"prior/{part}"):
                (tmp_path / folder).mkdir(parents=True, exist_ok=True)
                dtype = np.uint16 if folder.startswith("prior") else np.uint8
                cv2.imwrite(
                    str(tmp_path / folder / f"{name}.png"),
                    rng.integers(0, np.iinfo(dtype).max, (40, 48, 3), dtype, endpoint=True),
                )
    (tmp_path / "prior/prior.json").write_text("{}")
    network = ["--model.name", "swintormer_prior", "--model.overrides", "width=4", "blocks=0,0,0,0", "heads=1,1,1,1"]
    network += ["refinement_blocks=0", "window_size=2"]
    folders = ["--data.source", str(tmp_path / "pairs"), "--data.prepared-dir", str(tmp_path / "prepared")]
    prior = ["--data.prior", str(tmp_path / "prior")]
    sizes = ["--data.patch-size", "32", "--training.batch-size", "8", "--training.steps", "2"]
    run = tmp_path / "run"
    train([str(ROOT / "configs/paired.py"), *network, *folders, *prior, *sizes, "--logging.run-dir", str(run)])
    result = json.loads((run / "result.json").read_text())
    score(run, "--protocol", "paired-rgb", "--data", tmp_path / "pairs/test", "--prior", tmp_path / "prior")
    (output,) = (run / "evaluations").glob("paired-rgb-pairs-test-prior-prior.json")
    record = json.loads(output.read_text())
    assert record["prior"] == {"folder": str(tmp_path / "prior")}
    for name in ("psnr", "psnr_input"):
        assert record[name] == pytest.approx(result[name], abs=1e-6)


def test_eval_writes_table_json_and_picture(tiny_workspace, score, capsys):
    run, data = tiny_workspace / "runs/quickstart", tiny_workspace / "photographs"
    score(run, "--protocol", "gauss-color-25", "--data", data)
    (output,) = (tiny_workspace / "runs/quickstart/evaluations").glob("gauss-color-25-*-photographs.json")
    record = json.loads(output.read_text())
    run = json.loads((tiny_workspace / "runs/quickstart/result.json").read_text())
    assert record["weights_sha256"] == run["weights_sha256"]
    assert record["protocol"] == "gauss-color-25"
    assert record["protocol_details"]["noise_seed"] == PROTOCOLS["gauss-color-25"].noise_seed == 0
    assert [row["name"] for row in record["per_image"]] == ["a", "b"]
    assert record["sizes"] == 1
    assert (record["inference"]["tile"], record["inference"]["dtype"]) == (None, "float32")
    assert read(output.with_suffix(".png")) is not None
    printed = capsys.readouterr().out
    assert "mean of 2" in printed
    assert f"{record['psnr']:.2f}" in printed
    assert "1 size(s), " in printed


def test_eval_restores_as_it_is_told_and_records_it(tiny_workspace, tmp_path, score):
    run, output = tiny_workspace / "runs/quickstart", tmp_path / "result.json"
    for folder in ("input", "target"):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "pairs" / folder / "a.png"), read(tiny_workspace / "photo.png"))
    options = ("--tile", "32", "--overlap", "8", "--self-ensemble", "--dtype", "bfloat16")
    score(run, "--protocol", "gopro-tlc", "--data", tmp_path / "pairs", "--output", output, *options)
    record = json.loads(output.read_text())
    expected = {"tile": 32, "overlap": 8, "self_ensemble": True, "dtype": "bfloat16", "local_window": 384}
    assert {name: record["inference"][name] for name in expected} == expected
    assert [item["name"] for item in record["protocol_details"]["scores"]] == ["psnr", "ssim"]
    # JSON has no infinity: the input of this pair is its target.
    assert record["psnr_input"] is None
    assert record["per_image"][0].keys() == {"name", "height", "width", "psnr_input", "psnr", "ssim"}
    score(run, "--protocol", "gopro-tlc", "--data", tmp_path / "pairs", "--output", output, "--rows", "2")
    assert json.loads(output.read_text())["inference"]["rows"] == 2


def test_a_local_window_makes_another_protocol(tiny_workspace, tmp_path, score):
    for folder in ("input", "target"):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "pairs" / folder / "a.png"), read(tiny_workspace / "photo.png"))
    _, params = load_weights(tiny_workspace / "runs/quickstart")
    overrides = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1, "local_window": 8}
    # Trained with local means, as the recipes of NAFNet for GoPro are.
    save_weights(tmp_path / "local.safetensors", params, "gama_ir_tiny", overrides)

    def record(protocol: str, *options: str) -> dict:
        score(tmp_path / "local.safetensors", "--protocol", protocol, "--data", tmp_path / "pairs", *options)
        (newest,) = (tmp_path / "evaluations").glob("*.json")
        assert newest.name.startswith("local-")
        return json.loads(newest.rename(tmp_path / "result.json").read_text())

    whole, local = record("gopro"), record("gopro", "--local-window", "8")
    assert (whole["protocol"], whole["inference"]["local_window"]) == ("gopro", None)
    assert (local["protocol"], local["inference"]["local_window"]) == ("gopro+local-window-8", 8)
    assert local["protocol_details"]["local_window"] == 8
    assert abs(whole["psnr"] - local["psnr"]) > 1e-5
    assert record("paired-rgb")["inference"]["local_window"] == 8
    assert record("paired-rgb", "--local-window", "0")["inference"]["local_window"] is None


def test_eval_adds_metrics_of_the_user(tiny_workspace, tmp_path, score, monkeypatch):
    (tmp_path / "my_metrics.py").write_text("def mean_of_target(restored, target):\n    return target.mean()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run, data, output = tiny_workspace / "runs/quickstart", tiny_workspace / "photographs", tmp_path / "result.json"
    extra = ("--extra-metrics", "my_metrics:mean_of_target")
    score(run, "--protocol", "gauss-color-25", "--data", data, "--output", output, *extra)
    mean = json.loads(output.read_text())["my_metrics:mean_of_target"]
    assert mean == pytest.approx(read(data / "a.png").mean() / 255, abs=1e-5)


def test_eval_writes_a_submission_to_dnd(tiny_workspace, tmp_path, score, capsys):
    (tmp_path / "dnd/images_srgb").mkdir(parents=True)
    boxes = np.array([[1 + index, 1, 12 + index, 16] for index in range(20)], np.float64)
    with h5py.File(tmp_path / "dnd/info.mat", "w") as file:
        references = [file.create_dataset(f"boxes{index}", data=boxes.T).ref for index in range(50)]
        file.create_dataset("info/boundingboxes", data=np.array([references], h5py.ref_dtype))
    pixels = np.random.default_rng(0).random((3, 16, 32), np.float32)
    for index in range(50):
        with h5py.File(tmp_path / f"dnd/images_srgb/{index + 1:04d}.mat", "w") as file:
            file["InoisySRGB"] = pixels
    run, output = tiny_workspace / "runs/quickstart", tmp_path / "submission"
    score(run, "--protocol", "dnd-submit", "--data", tmp_path / "dnd", "--output", output)
    assert "wrote 50 files to" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [f"{index:04d}.mat" for index in range(1, 51)]
    crops = scipy.io.loadmat(output / "0050.mat")["Idenoised"]
    expected = Restorer.from_weights(run)(to_float(to_integers(pixels.T[2:14, :16], np.uint16)))
    np.testing.assert_allclose(crops[0, 2], np.clip(expected, 0, 1), atol=1e-5)


def test_restore_gives_what_the_restorer_gives(tiny_workspace, tmp_path, gamax):
    output = tmp_path / "restored.png"
    gamax("restore", tiny_workspace / "photo.png", "-o", output, "--weights", tiny_workspace / "runs/quickstart")
    photo = read(tiny_workspace / "photo.png")[..., ::-1]
    expected = Restorer.from_weights(tiny_workspace / "runs/quickstart")(photo)
    np.testing.assert_array_equal(read(output)[..., ::-1], expected)


@pytest.mark.parametrize("selection", ["photographs", "photographs/*.png"])
def test_restore_takes_folders_and_patterns_and_keeps_names(tiny_workspace, tmp_path, gamax, selection):
    run = tiny_workspace / "runs/quickstart"
    gamax("restore", tiny_workspace / selection, "-o", tmp_path / "out", "--weights", run)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "a.png", "b.png", "restored.jsonl"]


@pytest.mark.parametrize(("shape", "dtype"), [((30, 20), np.uint8), ((30, 20, 4), np.uint8), ((30, 20, 3), np.uint16)])
def test_restore_keeps_grey_alpha_and_bit_depth(tiny_workspace, tmp_path, gamax, shape, dtype):
    image = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    gamax("restore", tmp_path / "image.png", "--weights", tiny_workspace / "runs/quickstart")
    restored = read(tmp_path / "image_restored.png")
    assert restored.shape == shape
    assert restored.dtype == dtype
    if shape[-1] == 4:
        np.testing.assert_array_equal(restored[..., 3], image[..., 3])


def test_restore_reports_how_much_tiling_changes(tiny_workspace, tmp_path, gamax, capsys):
    run = tiny_workspace / "runs/quickstart"
    options = ("--tile", "32", "--overlap", "16", "--compare-tiling")
    gamax("restore", tiny_workspace / "photo.png", "-o", tmp_path / "tiled.png", "--weights", run, *options)
    photo = read(tiny_workspace / "photo.png")[..., ::-1] / 255
    tiled, whole = (Restorer.from_weights(run, tile=tile, overlap=16)(photo) for tile in (32, None))
    difference = 255 * np.abs(tiled - whole).max()
    assert difference > 1e-3
    assert "overlap 16; this network looks over all it is given" in (printed := capsys.readouterr().out)
    assert f"largest difference from whole {difference:.4f} of 255" in printed
    default = ("--tile", "32", "--overwrite")
    gamax("restore", tiny_workspace / "photo.png", "-o", tmp_path / "tiled.png", "--weights", run, *default)
    assert "tiles of 32 pixels, overlap 8;" in capsys.readouterr().out


def test_one_bad_image_of_several_does_not_stop_the_rest(tiny_workspace, tmp_path, gamax, capsys):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/good.png"), read(tiny_workspace / "photo.png"))
    (tmp_path / "in/bad.png").write_text("not an image")
    with pytest.raises(SystemExit) as stopped:
        gamax("restore", tmp_path / "in", "-o", tmp_path / "out", "--weights", tiny_workspace / "runs/quickstart")
    assert stopped.value.code == 2
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["good.png"]
    assert "bad.png" in capsys.readouterr().out


def test_models_prints_the_published_numbers_and_the_weights(gamax, capsys):
    gamax("models")
    printed = capsys.readouterr().out
    for text in ("gama_ir_s", "10,423,500", "gama_ir_l", "47,460,276", "2404.00807", "denoise-gaussian", "derain"):
        assert text in printed


def test_bench_prints_rows_and_a_table(gamax, capsys, tmp_path, monkeypatch):
    limits = {"flops_per_second": 1e9, "bytes_per_second": 1e9}
    monkeypatch.setattr("gamax.benchmark.roofline.measure_roofline", lambda precision: limits)
    sizes = ("--sizes", "32x48", "--repeats", "3", "--output", tmp_path / "rows.jsonl")
    gamax("bench", "infer", "--models", "gama_ir_tiny", *sizes)
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == row
    assert (row["height"], row["width"], row["precision"]) == (32, 48, "fp32-strict")
    assert 0 < row["latency_ms_p10"] <= row["latency_ms_median"] <= row["latency_ms_p90"]
    assert row["compile_cold_seconds"] > 0
    assert row["peak_memory_bytes"] > 32 * 48 * 3 * 4
    assert row["parameters"] == 324_739


def test_data_check_lists_every_problem(gamax, tmp_path, capsys):
    for folder, names in (("input", "ab"), ("target", "bc")):
        (tmp_path / folder).mkdir()
        for name in names:
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(SystemExit) as stopped:
        gamax("data", "check", tmp_path)
    assert stopped.value.code == 2
    printed = capsys.readouterr().out
    assert "30x20" in printed
    assert "problem:" in printed


def test_a_damaged_record_stops_training_or_is_skipped(tmp_path, train, capsys):
    (tmp_path / "photos").mkdir()
    for name in "abc":
        photo = np.random.default_rng(ord(name)).integers(0, 256, (40, 40, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"photos/{name}.png"), photo)
    folders = ("--data.source", str(tmp_path / "photos"), "--data.prepared-dir", str(tmp_path / "prepared"))
    run = ("--logging.run-dir", str(tmp_path / "run"), "--evaluation.data", str(tmp_path / "photos"))
    command = [str(ROOT / "configs/quickstart.py"), *TINY, "--data.dataset", "clean_folder", *folders, *run]
    from gamax.config import parse
    from gamax.data.datasets import prepare

    (shard,) = prepare(parse(command, "train.py")[0].data).folder.glob("*train*")
    content = bytearray(shard.read_bytes())
    content[2000] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"record 0 of '.*{shard.name}' cannot be read .*set data.skip_corrupt"):
        train(command)
    train([*command, "--data.skip-corrupt", "True"])
    assert f"skipped: record 0 of '{shard}'" in capsys.readouterr().out.replace("\n", "")


def test_bench_data_prints_rows_and_a_table(gamax, capsys, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in "abc":
        photo = np.random.default_rng(ord(name)).integers(0, 256, (90, 120, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"photos/{name}.png"), photo)
    folders = ("--dataset", "clean_folder", "--source", tmp_path / "photos", "--prepared-dir", tmp_path / "prepared")
    short = ("--seconds", 0.05, "--repeats", 1, "--workers", 1, "--batch", 2)
    gamax("bench", "data", *folders, *short, "--patch-size", 32, "--output", tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["storage"], row["reader"]) for row in rows] == [
        (storage, reader) for storage in ("files", "png", "raw") for reader in ("loop", "pipeline")
    ]
    assert all(row["examples_per_second"] > 0 and row["images_per_example"] == 1 for row in rows)
    for row in rows:
        if (row["reader"], row["storage"]) in {("pipeline", "png"), ("pipeline", "raw")}:
            total = row["fetch_ms"] + row["decode_ms"] + row["crop_and_batch_ms"]
            assert total == pytest.approx(1e3 / row["examples_per_second"])
    printed = capsys.readouterr().out
    assert "with 3 records, shuffling takes a large part" in printed
    assert "of the loop" in printed
    for wrong, words in [
        (("--patch-size", 200), "less than the patch"),
        (("--patch-size", 600), "'data.patch_size' must be from 1 to data.cut_size, not 600"),
        (("--seconds", 0), "seconds above 0"),
        (("--cores", 1000), "more than the"),
        (("--dataset", "kodak24"), "no training images"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            gamax("bench", "data", *folders, *short, "--storages", "png", *wrong)
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err


def test_restore_goes_on_and_compares(tiny_workspace, tmp_path, gamax, capsys):
    command = ["restore", tiny_workspace / "photographs", "-o", tmp_path / "out", "--task", "denoise", "--compare"]
    command += ["--weights", tiny_workspace / "runs/quickstart"]
    gamax(*command)
    assert "wrote 2 image(s)" in capsys.readouterr().out
    assert read(tmp_path / "out/compare/a.png") is not None
    (tmp_path / "out/b.png").unlink()
    gamax(*command)
    printed = capsys.readouterr().out
    assert "1 of 2 are restored already" in printed
    assert "wrote 1 image(s)" in printed


def test_convert_reports_and_compares(gamax, torch, tmp_path, capsys, random_params):
    from safetensors.numpy import save_file

    from gamax.interop import to_torch
    from gamax.models import create_model

    name = "nafnet_sidd_w32"
    options = {"width": 4, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)}
    params = random_params(create_model(name, **options), (1, 16, 16, 3))
    save_file(to_torch(name, params, **options), tmp_path / "theirs.safetensors")
    arguments = ["convert", tmp_path / "theirs.safetensors", "--model", name, "-o", tmp_path / "o.safetensors"]
    gamax(*arguments, "--overrides", "width=4", "encoder_blocks=1,1", "middle_blocks=1", "decoder_blocks=1,1")
    out = capsys.readouterr().out
    assert "100 tensors" in out
    assert "every one used" in out
    assert "middle_0" in out
    with pytest.raises(SystemExit):
        gamax(*arguments, "--overrides", "width")
    assert "expected KEY=VALUE" in capsys.readouterr().err
