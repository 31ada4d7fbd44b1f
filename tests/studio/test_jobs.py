"""Jobs: stopped from anywhere, their files gone, their threads ended."""

import threading
import time

import pytest

from vasa_hf.studio.jobs import Jobs, Pace, Stopped, told


def test_a_job_is_stopped_for_its_user_alone_and_leaves_nothing(tmp_path):
    jobs = Jobs(tmp_path)
    with jobs.open("anna") as hers, jobs.open("ben") as his:
        (hers.folder / "file").write_text("x")
        assert jobs.stop("anna") == 1
        with pytest.raises(Stopped):
            hers.check()
        his.check()
    assert not list(tmp_path.iterdir())
    jobs.stop("anna")
    with jobs.open("anna") as later:
        later.check()


def test_what_is_kept_goes_with_the_user_or_with_time(tmp_path):
    jobs = Jobs(tmp_path, keep_hours=1e-7)
    (jobs.kept("anna") / "avatar").mkdir()
    jobs.forget("anna")
    assert not list(tmp_path.iterdir())
    jobs.kept("ben")
    time.sleep(0.01)
    with jobs.open("carl"):
        assert [path.name[:8] for path in tmp_path.iterdir()] == ["job-carl"]


def test_messages_of_a_thread_arrive_in_order_with_its_result(tmp_path):
    def work(tell):
        for index in range(3):
            tell(index)
        return "result"

    with Jobs(tmp_path).open("anna") as job:
        heard, messages = [], told(job, work)
        while True:
            try:
                heard.append(next(messages))
            except StopIteration as end:
                assert end.value == "result"
                break
        assert [message for message in heard if message is not None] == [0, 1, 2]


@pytest.mark.parametrize("how", ["stopped", "left"])
def test_a_thread_ends_when_stopped_or_when_nobody_listens(tmp_path, how):
    ended = threading.Event()

    def work(tell):
        try:
            while True:
                tell("on it")
                time.sleep(0.01)
        finally:
            ended.set()

    with Jobs(tmp_path).open("anna") as job:
        messages = told(job, work)
        next(messages)
        if how == "left":
            messages.close()
        else:
            job.stop()
            with pytest.raises(Stopped):
                list(messages)
        assert ended.wait(5)


def test_an_error_of_a_thread_is_raised_here(tmp_path):
    with Jobs(tmp_path).open("anna") as job, pytest.raises(ValueError, match="wrong"):
        list(told(job, lambda tell: (_ for _ in ()).throw(ValueError("wrong"))))


def test_time_left_is_by_the_pace_of_the_stage(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace()
    assert pace.left("frames", 10, 100) is None
    now[0] = 5.0
    assert pace.left("frames", 20, 100) == pytest.approx(40.0)
    assert pace.left("other", 0, 3) is None
