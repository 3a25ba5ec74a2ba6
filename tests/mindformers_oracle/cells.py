"""A job's network and optimizer on one rank: cells that hold nothing but parameters."""

from __future__ import annotations

import mindspore
import numpy as np
from mindspore import nn

from tests.mindformers_oracle.jobs import Job, Parameter, full_tensor
from tests.mindformers_oracle.layouts import PHASE, Area

UNTOUCHED = 0x5A  # every byte of a parameter that nothing was loaded into


class Sides:
    """The two cells that MindFormers saves and loads. An optimizer has the network's parameters,
    too; in graph mode every rank has those of all stages, and holds its own."""

    def __init__(self, job: Job, rank: int, areas: dict[str, Area], *, filled: bool) -> None:
        self.network, self.optimizer = nn.Cell(), nn.Cell()
        for name, parameter in job.parameters.items():
            if job.pynative and name not in areas:
                continue
            array = part(name, parameter, areas.get(name))
            if not filled:
                array = np.frombuffer(bytes([UNTOUCHED]) * array.nbytes, array.dtype)
                array = array.reshape(part(name, parameter, areas.get(name)).shape).copy()
            made = mindspore.Parameter(mindspore.Tensor(array), name)
            if not job.pynative and job.ranks > 1:  # as the compiler leaves it
                made.param_info.is_param_init = True
                made.sliced = name in areas
            cells = [self.optimizer] if parameter.optimizer else [self.network, self.optimizer]
            for cell in cells:
                cell.insert_param_to_cell(name, made, check_name_contain_dot=False)
        for cell in (self.network, self.optimizer):
            cell.compile_phase = PHASE
        for rename in ("convert_name", "convert_concat_name"):  # of Hugging Face's names, for 1.8
            setattr(self.network, rename, lambda name: name)

    def optimizer_of(self, job: Job) -> nn.Cell | None:
        has = any(parameter.optimizer for parameter in job.parameters.values())
        return self.optimizer if has else None


def part(name: str, parameter: Parameter, area: Area | None) -> np.ndarray:
    whole = full_tensor(name, parameter)
    if not area:
        return whole
    return np.ascontiguousarray(whole[tuple(slice(*bounds) for bounds in area)])
