"""Which changes of an experiment make another run."""

from __future__ import annotations

from copy import deepcopy

import pytest

from t2ikit.config.compose import compose
from t2ikit.config.files import shipped_experiments
from t2ikit.run.changes import differing
from t2ikit.run.experiment import check


@pytest.mark.parametrize("ended", [False, True])
def test_parts_of_a_micro_batch_make_no_other_run_and_averages_do(ended: bool) -> None:
    plan = check(compose(shipped_experiments() / "shapes_cad_i_cmall.yaml"))
    before = deepcopy(plan.config)
    before["callbacks"]["by_text_length"] = None
    before["callbacks"]["ema"]["init_args"]["decay"] = 0.5
    changes = differing(before, plan, ended=ended)
    assert {change.key: change.decides for change in changes} == {
        "callbacks.by_text_length": False,
        "callbacks.ema.decay": True,
    }
