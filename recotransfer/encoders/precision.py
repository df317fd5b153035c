"""The precision in which a network computes: bfloat16 where torch supports it on this machine, else float32."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args

from recotransfer.errors import InputError, require

Precision = Literal["auto", "float32", "bfloat16"]
_LONG = 128  # tokens; torch packs the operands of attention only for long inputs, from about 64


def checked_precision(precision: str) -> str:
    """Validate the setting and return it unchanged.

    Raises:
        InputError: the precision is unknown, or it is bfloat16 and torch cannot multiply in it here.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}; it must be 'auto', 'float32' or 'bfloat16'")

    if precision == "bfloat16" and not multiplies_in_bfloat16():
        raise InputError("precision is 'bfloat16', in which torch cannot multiply on this machine; use 'auto'")

    return precision


@cache
def multiplies_in_bfloat16() -> bool:
    """Whether torch can multiply bfloat16 here, fast or slow; determined by a trial multiplication.

    The processor's flags are not enough: oneDNN and torch may be told to leave instructions unused
    (ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY), and then reject the packed products or the attention over long texts that
    `SentenceText` runs.
    """
    torch = require("torch")

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())

    ones = torch.ones(16, 16, dtype=torch.bfloat16)
    with torch.inference_mode():
        try:
            if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
                weight = torch.ops.mkldnn._reorder_linear_weight(ones, 16)
                torch.ops.mkldnn._linear_pointwise(ones, weight, None, "none", [], "")

            states = torch.ones(1, 1, _LONG, 16, dtype=torch.bfloat16)
            torch.nn.functional.scaled_dot_product_attention(states, states, states)

            return bool((ones @ ones == 16).all())
        except RuntimeError:
            return False


@cache
def computes_in_bfloat16() -> bool:
    """Whether the GPU or processor multiplies bfloat16 in hardware, which makes it faster than float32."""
    torch = require("torch")

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    cpu: Any = torch.cpu  # these probes are private, but torch offers no public one
    probes = [getattr(cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(probe is not None and probe() for probe in probes) and multiplies_in_bfloat16()
