"""Processes that share a folder of results; most of them are threads here."""

import os
import threading
import time

import pytest

from rome_jax.files import groups
from rome_jax.files.groups import ALONE, GroupError, IncompleteError, ProcessGroup, meeting
from rome_jax.files.locks import FolderInUseError, in_use
from tests.groups import together


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(groups, "_POLL", 0.01)
    monkeypatch.setattr(groups, "_VISIBLE", 0.3)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_disjoint_and_complete(count):
    items = list(range(5))
    shares = [ProcessGroup(index, count).share(items) for index in range(count)]
    assert sorted(item for share in shares for item in share) == items
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_needs_no_files(tmp_path):
    assert ALONE.share("ab") == ["a", "b"]
    assert ALONE.agree("run", lambda: 3) == 3
    with ALONE.working_in(tmp_path, "--output_dir", lambda: [1]) as todo:
        assert todo == [1]
    ALONE.finish(lambda: 1)
    assert not list(tmp_path.iterdir())


def test_process_0_decides_and_nothing_is_left(tmp_path):
    root = tmp_path / "results"

    def work(group):
        run = group.agree("run", lambda: f"run of {group.index}")
        with group.working_in(tmp_path, "the run", lambda: ["a", "b", "c"]) as todo:
            for name in group.share(todo):
                (tmp_path / name).write_text(f"{group.index}")
            group.finish(lambda: sum(not (tmp_path / name).exists() for name in todo))
        return run

    assert together(root, work, work) == ["run of 0", "run of 0"]
    assert [(tmp_path / name).read_text() for name in "abc"] == ["0", "1", "0"]
    assert not list(root.iterdir())


def test_the_others_finish_their_shares_when_one_fails(tmp_path):
    done = []

    def fail(group):
        raise RuntimeError("no memory")

    def work(group):
        time.sleep(0.1)
        done.append(group.index)
        group.finish(lambda: 2)

    first, failed, last = together(tmp_path, work, fail, work)
    assert sorted(done) == [0, 2] and str(failed) == "no memory"
    for error in (first, last):
        assert isinstance(error, IncompleteError)
        assert str(error).startswith(
            "the run is incomplete (cases missing: 2), because process 1 of 3"
        )
    assert not list(tmp_path.iterdir())


def test_a_failure_is_no_harm_if_nothing_is_missing(tmp_path):
    def fail(group):
        raise RuntimeError

    assert together(tmp_path, lambda group: group.finish(lambda: 0), fail)[0] is None


def test_the_others_do_not_wait_for_what_process_0_never_decides(tmp_path):
    def fail():
        raise OSError("no space")

    first, second = together(
        tmp_path, *2 * [lambda group: group.agree("run", fail if group.index == 0 else str)]
    )
    assert isinstance(first, OSError)
    assert isinstance(second, GroupError) and "process 0 ended before" in str(second)


def test_a_process_without_a_sign_of_life_is_lost(tmp_path, monkeypatch):
    """As after SIGKILL: its file stays as it is."""
    real = groups._Members._show

    def show(members):
        if members._index == 0 or next(members._beats) == 0:
            real(members)

    monkeypatch.setattr(groups._Members, "_show", show)
    ended = threading.Event()

    def survive(group):
        try:
            group.finish(lambda: 4)
        finally:
            ended.set()

    begun = time.monotonic()
    first, _ = together(tmp_path, survive, lambda group: ended.wait(20), timeout=0.5)
    assert isinstance(first, IncompleteError) and "process 1 of 2" in str(first)
    assert 0.5 <= time.monotonic() - begun < 15


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    for index in (0, 1):  # one after the other, each in a folder of its own
        with (
            pytest.raises(GroupError, match=f"process {index} does not see .* process {1 - index}"),
            meeting(tmp_path / f"{index}", "job", index, 2),
        ):
            pass


def test_another_run_is_kept_out_while_any_process_works(tmp_path):
    working = threading.Barrier(3)

    def work(group):
        with group.working_in(tmp_path, "the run", list):
            working.wait()
            working.wait()

    outside = []

    def intrude():
        working.wait()
        try:
            with in_use(tmp_path, "the run"):
                pass
        except FolderInUseError as error:
            outside.append(error)
        working.wait()

    intruder = threading.Thread(target=intrude)
    intruder.start()
    together(tmp_path / "group", work, work)
    intruder.join()
    assert len(outside) == 1
    with in_use(tmp_path):
        pass


def test_a_run_in_use_is_refused_to_all_processes(tmp_path):
    def work(group):
        with group.working_in(tmp_path, "the run", list):
            pass

    with in_use(tmp_path):
        first, second = together(tmp_path / "group", work, work)
    assert isinstance(first, FolderInUseError) and isinstance(second, GroupError)


def test_folders_of_groups_that_were_killed_are_removed_later(tmp_path):
    for name, age in (("old", 2 * groups._ABANDONED), ("new", 60)):
        folder = tmp_path / f"{groups._PREFIX}{name}"
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    with meeting(tmp_path, "job", 0, 1):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [f"{groups._PREFIX}new"]
