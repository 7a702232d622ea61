"""What the processes of a launch do for each other; tests/run/test_launched_run.py launches some."""

from __future__ import annotations

import threading

import pytest
from torch.distributed import HashStore

from glora_search.errors import UserError
from glora_search.run import launch, launcher
from glora_search.run.folder import RunFolder
from glora_search.run.launch import Launch, check_recipe, follows, helped, join, processes
from glora_search.run.launcher import NAMES, take_device
from glora_search.run.runner import Run
from glora_search.run.stages import STAGES

TOLD = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def two(monkeypatch):
    """The two processes of a launch; this one is the first."""
    store = HashStore()
    found = [Launch(rank, 2, store, {}) for rank in range(2)]
    monkeypatch.setattr(launch, "WAIT", 0.01)
    monkeypatch.setattr(launch, "_launch", found[0])
    return found


@pytest.fixture
def run(recipe, tmp_path):
    return Run.create(recipe, tmp_path / "run")


def test_without_a_launch_a_stage_is_for_one_process(tmp_path):
    with helped(STAGES["supernet"], tmp_path, {}) as count:
        assert (count, processes(), follows()) == (1, 1, False)


def test_the_others_help_with_a_search_and_a_race_until_the_first_process_ends(run, two, monkeypatch):
    helping, helped_with, ended = threading.Event(), [], []
    calls = {STAGES[name].joined_by: name for name in ("search", "finals")}

    def assist(folder, **options):
        helped_with.append((assist.name, folder, options))
        helping.set()

    def function(path):
        assist.name = calls[path]
        return assist

    monkeypatch.setattr(launch, "function", function)
    other = threading.Thread(target=lambda: ended.append(two[1].follow()), daemon=True)
    other.start()
    for name, options in {"search": {"workers": 3, "storage": "redis://here"}, "finals": {}}.items():
        helping.clear()
        with run.working(), helped(STAGES[name], run.folder, options) as count:
            assert count == 2
            assert helping.wait(20)
    with run.working(), helped(STAGES["merged"], run.folder, {}) as count:
        assert count == 1
    two[0]._say(None)
    other.join(20)
    folder = run.folder.resolve()
    assert helped_with == [("search", folder, {"storage": "redis://here"}), ("finals", folder, {})]
    assert ended == [0]


def test_a_process_that_sees_another_folder_is_refused(run, two):
    with pytest.raises(UserError, match="a run folder that all processes of the launch share"):
        two[1]._obey(0, STAGES["search"], run.folder, {})
    with pytest.raises(UserError, match="a run folder, made by"):
        two[1]._obey(0, STAGES["search"], run.folder / "elsewhere", {})


def test_one_process_tells_why_all_end(two, monkeypatch):
    assert [two[1].tells(), two[0].tells(), two[1].tells()] == [True, False, False]
    left = []

    def leave(self, code):
        left.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(Launch, "leave", leave)
    with pytest.raises(SystemExit):
        two[1].follow()
    assert left == [1]


def test_what_a_launcher_told_is_taken_from_the_environment_at_once(monkeypatch):
    monkeypatch.setattr(launch, "_launch", None)
    monkeypatch.setattr(launch, "end_with_the_launcher", lambda: None)
    monkeypatch.setattr(launch.distributed, "rendezvous", lambda url: iter([(HashStore(), 1, 2)]))
    for name in NAMES:
        monkeypatch.setenv(name, "1")
    joined = join()
    assert (joined.rank, joined.processes, processes(), follows()) == (1, 2, 2, True)
    assert set(joined.environment) == set(NAMES)
    assert not set(NAMES).intersection(launch.os.environ)


def test_a_process_has_one_device_to_itself(monkeypatch):
    monkeypatch.setattr(launcher.torch.cuda, "device_count", lambda: 2)
    for visible, own in {"": "1", "6,4": "4"}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        take_device(TOLD)
        assert launch.os.environ["CUDA_VISIBLE_DEVICES"] == own
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,4")
    with pytest.raises(UserError, match="LOCAL_WORLD_SIZE: got 3; allowed: 2 or fewer"):
        take_device({**TOLD, "LOCAL_WORLD_SIZE": "3"})
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    take_device(TOLD)
    assert launch.os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_sharded_weights_are_refused_by_name(monkeypatch):
    for kind in ("FSDP", "DEEPSPEED"):
        with monkeypatch.context() as patched:
            patched.setenv(f"ACCELERATE_USE_{kind}", "true")
            with pytest.raises(UserError, match=f"ACCELERATE_USE_{kind}: got 'true'"):
                take_device(TOLD)


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("task", "device_map", "auto", "task.device_map"),
        ("retrain", "training", {"fsdp": True}, "retrain.training.fsdp"),
    ],
)
def test_recipes_for_sharded_models_are_refused_in_a_launch_alone(recipe, two, monkeypatch, section, key, value, named):
    recipe = recipe.model_copy(deep=True)
    setattr(getattr(recipe, section), key, value)
    with pytest.raises(UserError, match=f"{named}: got"):
        check_recipe(recipe)
    monkeypatch.setattr(launch, "_launch", None)
    check_recipe(recipe)


def test_a_stage_notes_how_many_processes_did_it(run, two, monkeypatch):
    monkeypatch.setattr(launch.Launch, "training", lambda self, number: launch.contextlib.nullcontext())
    two[0].store.add("done 0", 1)  # the other one's part
    run.do("supernet")
    assert RunFolder(run.folder).done("supernet")["processes"] == 2
