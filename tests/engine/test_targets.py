"""Where an output may go, what it may replace, and that a crash in between leaves the old or the new."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess

import pytest
from checkpoint_files import write_adapter
from tiny_merges import make_merge, same_files
from tiny_models import make_tensors, save_model

from fastmerge.engine import RunOptions, folders, publish, run
from fastmerge.engine.files import InputFiles
from fastmerge.engine.folders import appearing
from fastmerge.errors import OutputError
from fastmerge.plan import make_plan
from fastmerge.recipe import load

OVER = RunOptions(overwrite=True)


@pytest.fixture
def merge(tmp_path):
    return make_merge(tmp_path, "linear", hidden=16, inner=16, vocab=16, layers=1)


@pytest.fixture
def merged(merge):
    """A merge whose output exists."""
    run(merge.plan(), merge.out)
    return merge


def refused(merge, match, out=None, options=OVER):
    """Check that a merge is refused before anything is read, and that nothing beside it changes."""
    folder = merge.out.parent
    before = sorted(folder.rglob("*"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OutputError, match=match):
        patch.setattr(InputFiles, "read", lambda *args: pytest.fail("an input was read"))
        run(merge.plan(), out or merge.out, options)
    assert sorted(folder.rglob("*")) == before


def test_an_output_is_replaced_when_asked(merged):
    refused(merged, "out exists and is complete, made by this recipe; .* --overwrite", options=None)
    before = merged.out.stat().st_ino
    run(merged.plan(shard_size=2000), merged.out, OVER)
    assert merged.out.stat().st_ino != before
    assert not (merged.out / "model.safetensors").exists()
    refused(merged, "out exists; choose another folder, or replace it with --overwrite$", options=None)
    run(merged.plan(), merged.out, OVER)
    assert sorted(p.name for p in merged.out.parent.iterdir()) == ["base", "model0", "model1", "model2", "out"]


@pytest.mark.parametrize("name", ["notes.txt", "checkpoint-1/model.safetensors", "model-00001-of-00002.safetensors"])
def test_files_that_fastmerge_did_not_write_stop_it(merged, name):
    path = merged.out / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    first = re.escape(name.split("/")[0])
    refused(merged, rf"is not replaced.*in the way: {first}/? \(not written by fastmerge\); choose another")
    refused(merged, "out exists and is complete, made by this recipe; choose another folder$", options=None)
    assert path.read_text() == "precious"


def test_links_are_not_files_that_fastmerge_wrote(merged):
    card = merged.out / "README.md"
    shutil.copy(card, merged.out.parent / "card")
    card.unlink()
    card.symlink_to(merged.out.parent / "card")
    refused(merged, r"README.md \(not written by fastmerge\)")


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_files_that_were_changed_stop_it(merged, name):
    if name == "model.safetensors":  # trained on, and saved there
        save_model(merged.out, make_tensors(9, hidden=16, inner=16, vocab=16, layers=1))
    else:
        path = merged.out / name
        path.write_bytes(path.read_bytes()[:-1] + b"#")
    refused(merged, rf"{name} \(changed since fastmerge wrote it\)")


def test_the_list_is_short(merged):
    for i in range(25):
        (merged.out / f"a{i:02}").touch()
    refused(merged, r"a00 \(not.*a09 \(not written by fastmerge\), 15 more; choose")


def test_folders_without_a_manifest_are_never_replaced(merge):
    save_model(merge.out, make_tensors(9, hidden=16, inner=16, vocab=16, layers=1))
    refused(merge, r"config.json \(not written by fastmerge\).*model.safetensors \(not written")


@pytest.mark.parametrize("manifest", ["", "{}", "[]", '{"format": 1}', '{"format": 1, "files": [3]}',
                                      '{"format": 1, "files": [{"name": "notes.txt"}]}'])  # fmt: skip
def test_broken_manifests_prove_nothing(merge, manifest):
    merge.out.mkdir()
    (merge.out / "fastmerge.json").write_text(manifest)
    (merge.out / "notes.txt").write_text("precious")
    refused(merge, r"notes.txt \((not written by|changed since) fastmerge")


def test_manifests_name_nothing_outside_their_folder(merged):
    victim = merged.out.parent / "victim"
    victim.write_text("precious")
    path = merged.out / "fastmerge.json"
    manifest = json.loads(path.read_text())
    manifest["files"].append({"name": "../victim", "bytes": 8, "xxh3": "0"})
    manifest["files"].append({"name": str(victim), "bytes": 8, "xxh3": "0"})
    path.write_text(json.dumps(manifest))
    run(merged.plan(), merged.out, OVER)
    assert victim.read_text() == "precious"


def test_outputs_of_the_first_version_are_replaced(merged):
    """They have no list of files: weights that hold only their tensors, and files of known names, are theirs."""
    path = merged.out / "fastmerge.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]
    path.write_text(json.dumps(manifest))
    (merged.out / "mergekit_config.yml").unlink()
    (merged.out / "modeling_own.py").touch()
    refused(merged, r"in the way: modeling_own.py \(not written by fastmerge\);")
    (merged.out / "modeling_own.py").unlink()
    manifest["tensors"].pop("model.norm.weight")
    path.write_text(json.dumps(manifest))
    refused(merged, r"in the way: model.safetensors \(changed since")
    manifest["tensors"]["model.norm.weight"] = ""
    path.write_text(json.dumps(manifest))
    run(merged.plan(), merged.out, OVER)


def inner_input(merge, spelled):
    """Move the first model into the output, and let the recipe name it as ``spelled``."""
    parent = merge.out.parent
    (parent / "model0").rename(merge.out / "checkpoint-100")
    (parent / "link").symlink_to(merge.out / "checkpoint-100")
    merge.recipe = merge.recipe.replace(f"{parent}/model0", spelled.format(parent))


@pytest.mark.parametrize("spelled", ["{}/out/checkpoint-100", "{}/link", "{}/model1/../out/checkpoint-100"])
def test_inputs_in_the_target_stop_it(merged, spelled):
    inner_input(merged, spelled)
    refused(merged, r"in the way: checkpoint-100 \(the input .*\); choose")
    assert (merged.out / "checkpoint-100" / "model.safetensors").exists()


def test_inputs_behind_bind_mounts_stop_it(merged, tmp_path):
    (tmp_path / "other").mkdir()
    inner_input(merged, "{}/other/model")
    (merged.out / "checkpoint-100").rename(merged.out / "model")
    mounted = subprocess.run(["mount", "--bind", merged.out, tmp_path / "other"], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot bind a mount: {mounted.stderr.decode().strip()}")
    try:
        refused(merged, r"in the way: model \(the input .*other/model\)")
    finally:
        subprocess.run(["umount", tmp_path / "other"], check=True)


def test_an_input_is_no_target(merged, tmp_path):
    refused(merged, r"in the way: \. \(the input .*model0\)", tmp_path / "model0")
    (tmp_path / "same").symlink_to(tmp_path / "model0")
    refused(merged, r"in the way: \. \(the input .*model0\)", tmp_path / "same")


def test_weights_that_are_links_into_the_target_stop_it(merged, tmp_path):
    weights = tmp_path / "model0" / "model.safetensors"
    weights.rename(merged.out / "weights")
    weights.symlink_to(merged.out / "weights")
    refused(merged, r"in the way: weights \(the input .*model0\); choose")


def test_adapters_in_the_target_stop_it(merged, tmp_path):
    write_adapter(merged.out / "adapter", {"model.layers.0.mlp.down_proj": (16, 16)}, rank=2)
    merged.recipe = merged.recipe.replace(f"{tmp_path}/model1", f"{tmp_path}/model1+{merged.out}/adapter")
    refused(merged, r"adapter.*\(the input .*adapter\)")


def test_the_recipe_in_the_target_stops_it(merged):
    path = merged.out / "recipe.yml"
    path.write_text(merged.recipe)
    with pytest.raises(OutputError, match=r"in the way: recipe.yml \(the recipe\); choose"):
        run(make_plan(load(path)), merged.out, OVER)
    assert path.exists()


@pytest.mark.parametrize(("where", "target"), [("out", "."), ("out", "../out"), ("out/inner", "..")])
@pytest.mark.parametrize("options", [None, OVER])
def test_the_current_directory_is_no_target(merge, monkeypatch, where, target, options):
    folder = merge.out.parent / where
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    refused(merge, "(is|holds) the current directory", target, options)


def test_links_to_folders(merge, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    run(merge.plan(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "fastmerge.json").exists()
    run(merge.plan(), tmp_path / "link", OVER)
    assert sorted(os.listdir(tmp_path)) == ["base", "disk", "link", "model0", "model1", "model2"]


def test_links_on_the_way_are_followed_before_dots(merge, tmp_path):
    (tmp_path / "disk" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/inner")
    run(merge.plan(), f"{tmp_path}/link/../out")
    assert (tmp_path / "disk" / "out" / "fastmerge.json").exists() and not merge.out.exists()


def test_targets_that_cannot_be(merge, tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    refused(merge, "link is a link to .*nowhere, which does not exist", tmp_path / "link")
    (tmp_path / "circle").symlink_to("circle")
    refused(merge, "circle is a link", tmp_path / "circle")
    (tmp_path / "file").write_text("precious")
    refused(merge, "file is a file", tmp_path / "file")
    refused(merge, "locking the target: File exists", tmp_path / "file" / "out")


def test_mount_points_are_refused(merge, tmp_path):
    merge.out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", merge.out], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        refused(merge, "out is a mount point.*choose one inside it")
        (tmp_path / "link").symlink_to(merge.out)
        refused(merge, "out is a mount point", tmp_path / "link")
        with pytest.raises(OutputError, match="is a mount point"), appearing(merge.out):
            pytest.fail("work began")
        run(merge.plan(), merge.out / "merged")
    finally:
        subprocess.run(["umount", merge.out], check=True)


def test_names_of_mount_points_are_unescaped(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    table.write_text("36 35 98:0 / /big\\040disk rw,noatime - ext4 /dev/root rw\n")
    opened = open
    monkeypatch.setattr("builtins.open", lambda path, *rest: opened(table, *rest))
    assert [str(path) for path in folders._mount_points()] == ["/big disk"]


def test_other_outputs_follow_links_too(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    with appearing(tmp_path / "link") as folder:
        (folder / "report").touch()
    assert os.listdir(tmp_path / "disk") == ["report"]
    with pytest.raises(RuntimeError), appearing(tmp_path / "new"):
        raise RuntimeError("stop")
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    monkeypatch.chdir(tmp_path / "disk")
    with pytest.raises(OutputError, match="current directory"), appearing("."):
        pytest.fail("work began")


def test_a_full_disk_is_named_by_what_was_to_appear(tmp_path):
    def write(errors):
        with appearing(tmp_path / "new") as folder:
            (folder / "part").touch()
            raise errors

    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError, match=r"new: no space left on the disk \(writing, \d+ bytes are free\); free some"):
        write(full)
    with pytest.raises(OutputError, match=r"new: writing: No such file or directory: elsewhere$"):
        write(FileNotFoundError(errno.ENOENT, "No such file or directory", "elsewhere"))
    assert not os.listdir(tmp_path)


def test_a_lock_that_finds_no_room_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="no space left on the disk"), publish.hold(tmp_path / "out"):
        pytest.fail("work began")
    assert not os.listdir(tmp_path)


class Crash(BaseException):
    """The end of the process, as far as the engine can see."""


def crash_at(monkeypatch, step):
    """Let the process end before the ``step``-th change of the file system while the output is published."""
    steps = iter(range(step))

    def counted(function):
        def call(*args, **kwargs):
            if next(steps, None) is None:
                raise Crash
            return function(*args, **kwargs)

        return call

    publishing = publish.StagingFolder.publish

    def publish_and_crash(self):
        with monkeypatch.context() as patch:
            for name in ("rename", "unlink", "rmdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            patch.setattr(publish, "_exchange", counted(publish._exchange))
            publishing(self)

    monkeypatch.setattr(publish.StagingFolder, "publish", publish_and_crash)


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("step", range(15))
def test_a_crash_leaves_the_old_output_or_the_new_one(merged, monkeypatch, step, exchanges):
    """Of a file system that cannot exchange folders: or both in the partial folder, until the next run."""
    if not exchanges:
        monkeypatch.setattr(publish, "_exchange", lambda a, b: False)
    tmp_path = merged.out.parent
    shutil.copytree(merged.out, tmp_path / "old")
    plan = merged.plan(shard_size=2000)
    run(plan, tmp_path / "new")
    with monkeypatch.context() as patch:
        crash_at(patch, step)
        try:
            run(plan, merged.out, OVER)
        except Crash:
            crashed = True
        else:
            crashed = False
    assert crashed or step > 10
    assert not crashed or step < 14
    if exchanges or merged.out.exists():
        assert same_files(merged.out, tmp_path / "old") or same_files(merged.out, tmp_path / "new")
    # A look at the target, as another recipe takes it, brings the old or the new back, too.
    with pytest.raises(OutputError, match="out exists"):
        run(plan, merged.out)
    assert same_files(merged.out, tmp_path / "old") or same_files(merged.out, tmp_path / "new")
    report = run(plan, merged.out, OVER)
    assert same_files(merged.out, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["base", "model0", "model1", "model2", "new", "old", "out"]
    if step == 0:
        assert report.resumed == report.tensors
