import time

from clusters.clocks import Exchange, HostClock, ThreadClock, VirtualClock
from clusters.device_lock import DeviceLock
from experiments.recorder import Recorder


class CountingClock:
    """Each mark is a second later than the last."""

    def __init__(self):
        self.now = 0.0

    def mark(self):
        self.now += 1
        return self.now

    def seconds(self, start, end):
        return end - start


def record(observing: bool, align_s: float = 10.0) -> list[dict]:
    clock = CountingClock()

    def align():
        clock.now += align_s

    recorder = Recorder(clock, align)
    recorder.observing = observing
    with recorder.iteration(cell="a", iteration=3, phase="p", order=0), recorder.layer(1), recorder.span("experts"):
        pass
    return recorder.rows()


def test_the_end_to_end_pass_has_two_marks_and_no_meeting():
    (row,) = record(observing=False)
    assert (row["metric"], row["value"], row["layer"]) == ("ttft_ms", 1000.0, None)


def test_a_layer_starts_after_the_meeting_whose_length_is_kept():
    rows = {row["metric"]: row for row in record(observing=True)}
    assert set(rows) == {"ttft_ms", "entry_skew_ms", "layer_moe_ms", "section_ms"}
    assert rows["entry_skew_ms"]["value"] == 11_000 and rows["layer_moe_ms"]["value"] == 3000
    assert rows["section_ms"]["section"] == "experts" and rows["section_ms"]["layer"] == 1
    assert rows["entry_skew_ms"]["iteration"] == 3


def test_times_of_one_cell_and_phase():
    clock = CountingClock()
    recorder = Recorder(clock, lambda: None)
    for cell, phase in (("a", "measure"), ("b", "measure"), ("a", "warmup"), ("a", "measure")):
        with recorder.iteration(cell=cell, iteration=0, phase=phase, order=0):
            pass
    assert recorder.ttft_ms("a", "measure") == [1000.0, 1000.0]


def test_time_in_which_the_thread_does_not_run_is_left_out_and_told(tmp_path):
    clock = VirtualClock(DeviceLock(tmp_path / "device_lock", 0, 1), ThreadClock())
    recorder = Recorder(clock, lambda: None)
    with clock.running(), recorder.iteration(cell="a", iteration=0, phase="p", order=0):
        time.sleep(0.2)
    values = {row["metric"]: row["value"] for row in recorder.rows()}
    assert values["preempted_ms"] > 190 and values["ttft_ms"] < 100


def test_a_clock_on_the_wall_says_nothing_of_preemption(tmp_path):
    clock = VirtualClock(DeviceLock(tmp_path / "device_lock", 0, 1), HostClock())
    recorder = Recorder(clock, lambda: None)
    with clock.running(), recorder.iteration(cell="a", iteration=0, phase="p", order=0):
        time.sleep(0.01)
    (row,) = recorder.rows()
    assert row["metric"] == "ttft_ms" and row["value"] >= 10


class Watch:
    """A stopwatch moved by hand."""

    def __init__(self):
        self.now = 0.0

    def mark(self):
        return self.now

    def seconds(self, start, end):
        return end - start


def exchange(start_s: float, sent: float) -> Exchange:
    return Exchange("all_to_all", start_s, start_s + 1, start_s + 1, start_s + 2, start_s + 5, [0.0, sent], 7.0, False)


def test_collectives_of_observed_layers_are_kept_with_their_place(tmp_path):
    watch = Watch()
    clock = VirtualClock(DeviceLock(tmp_path / "device_lock", 0, 1), watch)
    recorder = Recorder(clock, lambda: clock.on_exchange(exchange(0, 1)))  # the meeting before a layer is no part of it
    for observing in (False, True):
        recorder.observing = observing
        with clock.running(), recorder.iteration(cell="a", iteration=int(observing), phase="p", order=0):
            clock.on_exchange(exchange(0, 2))
            for layer in (1, 3):
                with recorder.layer(layer):
                    watch.now += 1
                    start_s = clock.now_s()
                    with recorder.span("dispatch"):
                        clock.on_exchange(exchange(start_s, 3))
                    clock.on_exchange(exchange(start_s + 10, 4))
    rows = recorder.collectives()
    places = [(row["iteration"], row["layer"], row["section"], row["sequence"]) for row in rows]
    assert places == [(1, 1, "dispatch", 0), (1, 1, None, 1), (1, 3, "dispatch", 0), (1, 3, None, 1)]
    moments = ("resumed_ms", "issued_ms", "waited_ms", "started_ms", "finished_ms")
    assert [rows[2][name] for name in moments] == [1000, 2000, 2000, 3000, 6000]
    assert (rows[3]["sent_to"], rows[3]["bytes_sent"], rows[3]["bytes_received"], rows[3]["ranks"]) == ([0, 4], 4, 7, 2)
