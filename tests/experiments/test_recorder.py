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
