"""Rows of one to three elements, whose dx is the rest of a cancellation: no false alarm, and no bug that passes."""

import pytest
from scripted import Scripted, cases, plan, run, statuses

from bench.measure.providers import Runnable, providers


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_an_honest_implementation_is_right(tmp_path, op, dtype):
    found = cases("ln", tokens="1,3", hidden="1,2,3", dtype=dtype, mode="fwd_bwd")
    found = tuple(type(case)(**{**vars(case), "op": op}) for case in found)
    outcome, _ = run(tmp_path, plan(providers()["normlib"], found=found))
    assert [(r.shape, r.reason) for r in outcome.records if r.status != "ok"] == []


@pytest.mark.parametrize("wrong", [{"y": 1.001}, {"dw": 1.001}, {"dx": 1.05}])
def test_a_wrong_tensor_is_noticed_all_the_same(tmp_path, wrong):
    def spoil(built, case, inputs):
        scaled = lambda found: {name: tensor * wrong.get(name, 1) for name, tensor in found.items()}
        honest = providers()["normlib"].build(case, inputs)
        return Runnable(lambda: scaled(honest.run()), lambda: scaled(honest.outputs()))

    outcome, _ = run(tmp_path, plan(Scripted(spoil=spoil), found=cases(tokens="3", hidden="2,3", mode="fwd_bwd")))
    assert statuses(outcome) == {"wrong"}
