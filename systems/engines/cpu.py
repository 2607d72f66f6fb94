"""Our own grouped expert FFN for CPUs, in C++ (cpu_kernels.cpp), compiled for the machine at hand on first use."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from systems.engines.base import Engine

SOURCE = Path(__file__).with_name("cpu_kernels.cpp")
PAIR = {torch.float32: 1, torch.bfloat16: 2}  # summed elements that lie together in packed weights


class CpuEngine(Engine):
    """Both products of each expert on rows gathered block by block; threads share the experts' rows, not a product.

    Uses torch's threads. float32 is IEEE; bfloat16 sums in float32.
    """

    name = "cpu"

    def check(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> None:
        if device.type != "cpu":
            raise ValueError(f"engine=cpu runs on CPUs and this rank is on {device.type}; use engine=triton")
        if dtype not in PAIR:
            raise ValueError(f"engine=cpu multiplies float32 and bfloat16, got {dtype}; use engine=grouped")
        kernels()

    def prepare(self, wi_eDF: torch.Tensor, wo_eFD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Panels of columns, [e, F/panel, D/pair, panel, pair] and [e, D/panel, F/pair, panel, pair].

        F is padded to whole panels and D to whole pairs and panels, with zeros.
        """
        panel, pair = kernels().panel(), PAIR[wi_eDF.dtype]
        padding = -wi_eDF.shape[2] % panel
        wo_eFD = torch.nn.functional.pad(wo_eFD, (0, 0, 0, padding))
        return _packed(wi_eDF, panel, pair), _packed(wo_eFD, panel, pair)

    def group(self, expert_N: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A counting sort, many times as fast as `torch.argsort`."""
        return kernels().group_by_expert(expert_N, num_experts)

    def __call__(
        self,
        x_MD: torch.Tensor,
        order_N: torch.Tensor,
        rows_e: torch.Tensor,
        wi: torch.Tensor,
        wo: torch.Tensor,
        top_k: int = 1,
    ) -> torch.Tensor:
        return kernels().grouped_ffn(x_MD, order_N, rows_e, wi, wo, top_k)


def _packed(w_eKN: torch.Tensor, panel: int, pair: int) -> torch.Tensor:
    """[e, N/panel, K/pair, panel, pair], padded with zeros."""
    num_experts, depth, width = w_eKN.shape
    w_eKN = torch.nn.functional.pad(w_eKN, (0, -width % panel, 0, -depth % pair))
    return w_eKN.view(num_experts, -1, pair, w_eKN.shape[2] // panel, panel).permute(0, 3, 1, 4, 2).contiguous()


@cache
def kernels() -> "torch._ops._OpNamespace":
    """The compiled kernels; ValueError where there is no compiler or it fails.

    The library lies in torch's folder of extensions, named by what it depends on: source, torch and processor.
    """
    from torch.utils import cpp_extension

    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise ValueError(f"engine=cpu compiles its kernels and there is no compiler {compiler}; use engine=grouped")
    made_of = [SOURCE.read_text(), torch.__version__, _processor()]
    name = f"moe_cpu_{hashlib.sha256(''.join(made_of).encode()).hexdigest()[:12]}"
    flags = ["-O3", "-march=native", "-fopenmp", "-DAT_PARALLEL_OPENMP=1"]
    try:
        cpp_extension.load(name, [str(SOURCE)], extra_cflags=flags, is_python_module=False)
    except (RuntimeError, OSError) as error:
        lines = str(error).splitlines()
        reason = next((line for line in lines if "error:" in line), lines[0])
        raise ValueError(f"engine=cpu could not compile its kernels ({reason}); use engine=grouped") from error
    return torch.ops.moe_cpu


def _processor() -> str:
    """What `-march=native` depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
