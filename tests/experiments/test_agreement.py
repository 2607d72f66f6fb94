import torch

from experiments.agreement import deviations, digest_strings, digest_tensors, sketch


def test_systems_that_agree_have_no_deviation():
    sketch_SBL = torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 2.0]]])
    error_S, left_out = deviations(sketch_SBL, torch.zeros(3, 1, 2, dtype=torch.int64))
    assert error_S.tolist() == [0, 0, 0] and left_out == 0


def test_the_one_that_differs_is_the_one_that_is_named():
    sketch_SBL = torch.tensor([[[1.0, 4.0]], [[1.0, 4.0]], [[3.0, 4.0]]])
    error_S, _ = deviations(sketch_SBL, torch.zeros(3, 1, 2, dtype=torch.int64))
    assert error_S.tolist() == [0, 0, 0.5]  # 2 of 4, the largest value


def test_of_two_that_differ_both_are_named():
    sketch_SBL = torch.tensor([[[1.0, 4.0]], [[3.0, 4.0]]])
    error_S, _ = deviations(sketch_SBL, torch.zeros(2, 1, 2, dtype=torch.int64))
    assert error_S.tolist() == [0.25, 0.25]


def test_nan_condemns_its_system_alone():
    sketch_SBL = torch.tensor([[[1.0, 4.0]], [[1.0, 4.0]], [[torch.nan, 4.0]]])
    error_S, _ = deviations(sketch_SBL, torch.zeros(3, 1, 2, dtype=torch.int64))
    assert error_S[:2].tolist() == [0, 0] and not error_S[2] <= 1


def test_a_sequence_routed_otherwise_is_left_out_and_counted():
    sketch_SBL = torch.tensor([[[1.0, 2.0], [9.0, 9.0]], [[1.0, 2.0], [0.0, 0.0]]])
    expert_SBX = torch.tensor([[[0, 1], [2, 3]], [[0, 1], [2, 1]]])
    error_S, left_out = deviations(sketch_SBL, expert_SBX)
    assert error_S.tolist() == [0, 0] and left_out == 1


def test_nothing_to_compare_is_no_agreement():
    expert_SBX = torch.tensor([[[0]], [[1]]])
    error_S, left_out = deviations(torch.ones(2, 1, 1), expert_SBX)
    assert error_S.tolist() == [torch.inf, torch.inf] and left_out == 1


def test_sketch_sees_every_token_and_every_dimension():
    hidden_BLD = torch.randn(2, 3, 16)
    before_BL = sketch(hidden_BLD)
    assert before_BL.shape == (2, 3) and torch.equal(before_BL, sketch(hidden_BLD))
    for dimension in range(16):
        changed_BLD = hidden_BLD.clone()
        changed_BLD[1, 2, dimension] += 1
        assert (sketch(changed_BLD) != before_BL).nonzero().tolist() == [[1, 2]]


def test_digests_depend_on_names_values_and_order():
    x, y = torch.zeros(2), torch.ones(2)
    assert digest_tensors({"a": x, "b": y}) == digest_tensors({"b": y, "a": x})
    assert len({digest_tensors(t) for t in ({"a": x}, {"b": x}, {"a": y}, {"a": x.double()})}) == 4
    assert digest_strings(["a", "b"]) != digest_strings(["b", "a"])


def test_a_twin_has_no_vote():
    sketch_SBL = torch.tensor([[[1.0, 4.0]], [[1.0, 4.0]], [[3.0, 4.0]], [[3.0, 4.0]], [[3.0, 4.0]]])
    error_S, _ = deviations(sketch_SBL, torch.zeros(5, 1, 2, dtype=torch.int64), voters=[0, 1, 2])
    assert error_S.tolist() == [0, 0, 0.5, 0.5, 0.5]
