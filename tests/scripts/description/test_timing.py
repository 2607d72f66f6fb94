import torch

from scripts.description.timing import in_program_s


def test_each_call_of_a_program_has_operands_of_its_own():
    x, seen, values = torch.ones(1 << 16), set(), set()

    def call(own):
        seen.add(own.data_ptr())
        values.add(float(own.sum()))

    assert in_program_s(call, (x,), 0.05) > 0
    assert len(seen) > 2 and x.data_ptr() not in seen and values == {float(x.sum())}
