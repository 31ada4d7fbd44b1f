"""Jobs: stopped from anywhere, in turn, their files removed, their threads ended."""

import threading
import time

import pytest

from vasa_hf.demo.jobs import Jobs, Line, Pace, Stopped, run_in_thread


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
    def work(report):
        for index in range(3):
            report(index)
        return "result"

    with Jobs(tmp_path).open("anna") as job:
        received, messages = [], run_in_thread(job, work)
        while True:
            try:
                received.append(next(messages))
            except StopIteration as end:
                assert end.value == "result"
                break
        assert [message for message in received if message is not None] == [0, 1, 2]


@pytest.mark.parametrize("how", ["stopped", "left"])
def test_a_thread_ends_when_stopped_or_when_nobody_listens(tmp_path, how):
    ended = threading.Event()

    def work(report):
        try:
            while True:
                report("on it")
                time.sleep(0.01)
        finally:
            ended.set()

    with Jobs(tmp_path).open("anna") as job:
        messages = run_in_thread(job, work)
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
        list(run_in_thread(job, lambda report: (_ for _ in ()).throw(ValueError("wrong"))))


def test_time_left_is_by_the_pace_of_the_stage(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace()
    assert pace.left("frames", 10, 100) is None
    now[0] = 5.0
    assert pace.left("frames", 20, 100) == pytest.approx(40.0)
    assert pace.left("other", 0, 3) is None


def test_jobs_run_in_order_and_know_their_place_and_wait(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    jobs, line = Jobs(tmp_path), Line()
    with jobs.open("ann") as first, jobs.open("ben") as second, jobs.open("cem") as third, line.join(second) as his:
        with line.join(first) as hers:
            pass  # left without a turn: not counted
        assert line.typical_seconds() is None
        assert not list(his.wait())
        with line.join(third) as last:
            waits = last.wait(every=0)
            assert next(waits).stage == "Waiting: place 1 in the queue" and hers.began is None
            his.seconds_left = 12.0
            assert next(waits).seconds_left == 12.0
            with jobs.open("dov") as fourth, line.join(fourth) as end:
                behind = end.wait(every=0)
                update = next(behind)
                assert update.stage == "Waiting: place 2 in the queue" and update.seconds_left is None
                third.stop()
                with pytest.raises(Stopped):
                    next(waits)
                assert next(behind).stage == "Waiting: place 1 in the queue"
                third_ended = jobs.stop("ben")
                assert third_ended == 1 and next(behind).stage == "Waiting: place 1 in the queue"  # it still runs


def test_a_wait_is_estimated_from_the_last_jobs(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    jobs, line = Jobs(tmp_path), Line()
    with jobs.open("ann") as one:
        with line.join(one) as turn:
            assert not list(turn.wait())
            now[0] = 30.0
        assert line.typical_seconds() == 30
        with line.join(one) as running, line.join(one) as second, line.join(one) as third:
            assert not list(running.wait())
            assert next(second.wait(every=0)).seconds_left == 30
            running.seconds_left = 5.0
            assert next(third.wait(every=0)).seconds_left == 35


def test_the_next_job_begins_when_the_one_before_ends(tmp_path):
    jobs, line, order = Jobs(tmp_path), Line(), []

    def run(name):
        with jobs.open(name) as job, line.join(job) as turn:
            for _ in turn.wait(every=0.01):
                pass
            order.append(f"{name} begins")
            time.sleep(0.05)
            order.append(f"{name} ends")

    threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join(10)
    assert order == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]
