"""Our own grouped expert FFN for CPUs, in C++ (cpu_kernels.cpp), compiled for the machine at hand on first use."""

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch.nn.functional import pad
from torch.utils.weak import WeakIdKeyDictionary

from systems.engines.base import Copies, Engine

SOURCE = Path(__file__).with_name("cpu_kernels.cpp")
FLAGS = ("-std=c++20", "-O3", "-fopenmp", "-DAT_PARALLEL_OPENMP=1", "-shared", "-fPIC")
MARCH = "HARNESS_MARCH"  # a variable of the environment: another -march than native, such as x86-64-v3 (AVX2)
PAIR = {torch.float32: 1, torch.bfloat16: 2}  # summed elements that lie together in packed weights
_shapes: list[torch.library.Library] = []
_packed: Any = WeakIdKeyDictionary()  # W_i -> (W_o, all packed): systems that share weights share these


class CpuEngine(Engine):
    """Both products of each expert on rows gathered block by block; threads share the experts' rows, not a product.

    Uses torch's threads. float32 is IEEE; bfloat16 sums in float32.
    """

    name = "cpu"

    def check(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> None:
        """Compiles the kernels if they are not there yet."""
        if device.type != "cpu":
            raise ValueError(f"engine=cpu runs on CPUs and this rank is on {device.type}; use engine=triton")
        if dtype not in PAIR:
            raise ValueError(f"engine=cpu multiplies float32 and bfloat16, got {dtype}; use engine=grouped")
        kernels()

    def prepare(self, wi_eDI: torch.Tensor, wo_eFD: torch.Tensor, *biases: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Panels of columns, [e, I/panel, D/pair, panel, pair] and [e, D/panel, F/pair, panel, pair].

        F is padded to whole panels and D to whole pairs and panels, with zeros: where they are, an infinite token
        makes NaN of outputs that other engines might leave finite. Where the activation is gated, half a panel is of
        the gate and half of the same units of what it is multiplied with. Biases are float32, in the panels' order.
        Weights must not be changed afterwards.
        """
        packed_of, packed = _packed.get(wi_eDI, (None, ()))
        if packed_of is not wo_eFD:
            halves = 2 if self.activation.gated else 1
            units = kernels().panel() // halves
            wo_eFD_padded = pad(wo_eFD, (0, 0, 0, -wo_eFD.shape[1] % units))
            packed = pack(_side_by_side(wi_eDI, halves, units)), pack(wo_eFD_padded)
            packed += tuple(_bias(bias, halves, units) for bias, halves in zip(biases, (halves, 1), strict=False))
            _packed[wi_eDI] = wo_eFD, packed
        return packed

    def group(self, expert_N: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A counting sort, many times as fast as `torch.argsort`."""
        return kernels().group_by_expert(expert_N, num_experts)

    def __call__(self, x_MD: torch.Tensor, copies: Copies, *weights: torch.Tensor) -> torch.Tensor:
        order_N, rows_e, top_k, weight_N = copies
        wi, wo, bi, bo = (*weights, None, None)[:4]
        return kernels().grouped_ffn(x_MD, order_N, rows_e, wi, wo, bi, bo, top_k, weight_N, self.activation.name)


def _side_by_side(w_eXI: torch.Tensor, halves: int, units: int) -> torch.Tensor:
    """Columns of the `halves` of W_i in turns, so many units of each, padded to whole panels with zeros."""
    if halves == 1:
        return w_eXI
    parts = [pad(part, (0, -part.shape[2] % units)).unflatten(2, (-1, units)) for part in w_eXI.chunk(halves, 2)]
    return torch.stack(parts, 3).flatten(2)


def _bias(bias_eX: torch.Tensor, halves: int, units: int) -> torch.Tensor:
    """Padded to whole panels."""
    bias_eX = _side_by_side(bias_eX.unsqueeze(1), halves, units).squeeze(1).float()
    return pad(bias_eX, (0, -bias_eX.shape[1] % kernels().panel())).contiguous()


def pack(w_eKN: torch.Tensor) -> torch.Tensor:
    """[e, N/panel, K/pair, panel, pair], padded with zeros."""
    panel, pair = kernels().panel(), PAIR[w_eKN.dtype]
    num_experts, depth, width = w_eKN.shape
    w_eKN = pad(w_eKN, (0, -width % panel, 0, -depth % pair))
    parts = (num_experts, -(-depth // pair), pair, -(-width // panel), panel)
    return w_eKN.view(parts).permute(0, 3, 1, 4, 2).contiguous()


@cache
def kernels() -> Any:
    """The compiled operators; ValueError, in one sentence, where there is no compiler or it fails."""
    try:
        torch.ops.load_library(_library())
    except OSError as error:
        raise ValueError(f"engine=cpu cannot keep or load its kernels ({error}); use engine=grouped") from error
    # So that ranks that hold no activations can say how large the results are.
    shapes = torch.library.Library("moe_cpu", "IMPL", "Meta")
    shapes.impl("grouped_ffn", lambda x_MD, order_N, *rest: x_MD.new_empty(len(order_N), x_MD.shape[1]))
    shapes.impl("group_by_expert", lambda expert_N, num: (torch.empty_like(expert_N), expert_N.new_empty(num)))
    _shapes.append(shapes)  # they go with it
    return torch.ops.moe_cpu


def _library() -> Path:
    """The shared library, named by all it depends on; compiled by one process while others wait, moved when whole."""
    compiler = os.environ.get("CXX", "c++")
    made_of = [SOURCE.read_text(), *_flags(), torch.__version__, _output(compiler, "--version"), processor()]
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    folder = cache_folder()
    library = folder / f"cpu_kernels_{digest}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):
            if not library.exists():
                print(f"engine=cpu: compiling its kernels for this processor, once, in {folder}", file=sys.stderr)
                _compile(compiler, unfinished := library.with_suffix(f".{os.getpid()}"))
                unfinished.replace(library)
    return library


def _flags() -> list[str]:
    return [*FLAGS, f"-march={os.environ.get(MARCH, 'native')}"]


def _compile(compiler: str, target: Path) -> None:
    torch_root = Path(torch.__file__).parent
    include = [f"-I{torch_root / 'include'}", f"-I{torch_root / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{torch_root / 'lib'}", f"-Wl,-rpath,{torch_root / 'lib'}", "-ltorch_cpu", "-lc10"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    _output(compiler, *_flags(), abi, *include, str(SOURCE), "-o", str(target), *libraries)


def _output(compiler: str, *arguments: str) -> str:
    """What the compiler prints; ValueError where there is none or it refuses."""
    try:
        done = subprocess.run([*shlex.split(compiler), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(
            f"engine=cpu compiles its kernels and cannot run {compiler} ({error}); use engine=grouped"
        ) from error
    if done.returncode:
        lines = done.stderr.splitlines()
        reason = next((line for line in lines if "error" in line), "no reason given")
        raise ValueError(f"engine=cpu could not compile its kernels ({reason}); use engine=grouped")
    return done.stdout


def processor() -> str:
    """What `-march=native` depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def cache_folder() -> Path:
    """Where this user's machine keeps what it compiled and measured."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moe-inference-harness"
