"""The functions of all methods, for editors. Made by: fastmerge methods --update fastmerge/functional.pyi"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .tensors import merge_tensors as merge_tensors

__all__: list[str]

def arcee_fusion(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + d * [s >= median(s) + 1.5 (q3(s) - q1(s))],   s = |d| * KL(row)"""

def breadcrumbs(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    density: float | Sequence[float] = 1.0,
    gamma: float | Sequence[float] = 0.01,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * sum_k w_k band(theta_k - base)"""

def breadcrumbs_ties(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    density: float | Sequence[float] = 1.0,
    gamma: float | Sequence[float] = 0.01,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * elected sum of w_k band(theta_k - base)"""

def consensus(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float] = 1.0,
    mask_lambda: float | Sequence[float] = 0.6,
    threshold: int = 2,
    merge: Literal["sum", "ties"] = "sum",
    density: float | Sequence[float] = 1.0,
    lambda_: float = 1.0,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * t, where |d_k| > mask_lambda_k |t - d_k| for >= threshold models"""

def dare_linear(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    density: float | Sequence[float] = 1.0,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * sum_k w_k r_k drop(theta_k - base)"""

def dare_ties(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    density: float | Sequence[float] = 1.0,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
    majority_sign_method: Literal["total", "frequency"] = "total",
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * elected sum of w_k r_k drop(theta_k - base)"""

def della(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    density: float | Sequence[float] = 1.0,
    epsilon: float | Sequence[float] = 0.15,
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * elected mean of w_k r_k drop(theta_k - base)"""

def della_linear(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    density: float | Sequence[float] = 1.0,
    epsilon: float | Sequence[float] = 0.15,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * sum_k w_k r_k drop(theta_k - base)"""

def emr(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    task: int,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + s_j M_j u, j = task: unified delta u, mask M_j, scale s_j"""

def expo(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    alpha: float,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = theta_0 + alpha (theta_0 - base)"""

def fisher(
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float] = 1.0,
    fisher: str | Sequence[str] = "",
    normalize: bool = True,
    floor: float = 1e-06,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = sum_k w_k (F_k + floor) theta_k / sum_k w_k (F_k + floor)"""

def iso_c(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float] = 1.0,
    lambda_: float = 1.0,
    matrices: Literal["attn_mlp", "all"] = "attn_mlp",
    null_space: Literal["keep", "reference"] = "keep",
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * mean(s) U V^T,  U diag(s) V^T = sum_k w_k (theta_k - base)"""

def iso_cts(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float] = 1.0,
    lambda_: float = 1.0,
    matrices: Literal["attn_mlp", "all"] = "attn_mlp",
    null_space: Literal["keep", "reference"] = "keep",
    common_share: float = 0.8,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * mean(s) polar([U_c U_1 .. U_T]) polar([V_c V_1 .. V_T])^T"""

def karcher(
    tensors: Sequence[Tensor] | Tensor,
    *,
    max_iter: int = 10,
    tol: float = 1e-05,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = mean_k |theta_k| * m, m = Karcher mean of the theta_k / |theta_k|"""

def knots(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float] = 1.0,
    density: float | Sequence[float] = 1.0,
    merge: Literal["ties", "dare_ties", "dare_linear"] = "ties",
    lambda_: float = 1.0,
    matrices: Literal["attn_mlp", "all"] = "attn_mlp",
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * U merge(U^T d_1, .., U^T d_T),   d_k = w_k (theta_k - base)"""

def linear(
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    normalize: bool = True,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = sum_k w_k theta_k / sum_k w_k"""

def magmax(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float] = 1.0,
    lambda_: float = 1.0,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * d_k with the largest |d_k|,   d_k = w_k (theta_k - base)"""

def magnitude_prune(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    density: float | Sequence[float] = 1.0,
    scope: Literal["tensor", "model"] = "tensor",
    lambda_: float = 1.0,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * sum_k w_k prune(theta_k - base)"""

def model_stock(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    filter_wise: bool = False,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + t * mean_k (theta_k - base), t = N c / (1 + (N-1) c)"""

def multislerp(
    base: Tensor | None,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    normalize_weights: bool = True,
    eps: float = 1e-08,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = sum_k w_k |v_k| * s / |s|, s = sum_k w_k v_k / (|v_k| + eps)"""

def nearswap(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    t: float,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + min(t / |d|, 1) d,   d = theta_0 - base"""

def nuslerp(
    base: Tensor | None,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = sin((1-t) a) / sin(a) * v_0 + sin(t a) / sin(a) * v_1, t = w_1 / (w_0 + w_1)"""

def passthrough(
    tensors: Sequence[Tensor] | Tensor,
    *,
    scale: float | Sequence[float] = 1.0,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = scale * theta_0; with scale 1, a copy."""

def ram(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    epsilon: float = 1e-05,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + sum_k [|d_k| > epsilon] d_k / c,   c = number of k with |d_k| > epsilon"""

def ramplus_tl(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    r: float = 0.1,
    alpha: float = 0.2,
    epsilon: float = 1e-05,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + f_k d_k where only model k changed an element, elsewhere as ``ram``"""

def regmean(
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float] = 1.0,
    gram: str | Sequence[str] = "",
    reduction: float = 0.9,
    ridge: float = 1e-06,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta^T = (sum_k w_k G_k)^-1 sum_k w_k G_k theta_k^T"""

def sce(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    select_topk: float = 1.0,
    int8_mask: bool = False,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + sum_k w_k M_k d_k / max(sum_k w_k M_k, 1e-6)"""

def slerp(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    t: float,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = sin((1-t) a) / sin(a) * base + sin(t a) / sin(a) * theta_0"""

def tall_mask(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    task: int,
    weight: float | Sequence[float] = 1.0,
    mask_lambda: float | Sequence[float] = 0.6,
    merge: Literal["sum", "ties"] = "sum",
    density: float | Sequence[float] = 1.0,
    lambda_: float = 1.0,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * t where |d_j| > mask_lambda_j |t - d_j|, j = task"""

def task_arithmetic(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    normalize: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
    density: float | Sequence[float] = 1.0,
    rescale: bool = False,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * sum_k w_k (theta_k - base)"""

def task_arithmetic_sb(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    normalize: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
    density: float | Sequence[float] = 1.0,
    rescale: bool = False,
    beta: float = 0.2,
    matrices: Literal["attn_mlp", "all"] = "attn_mlp",
    null_space: Literal["keep", "reference"] = "keep",
    splitting: Literal["none", "qkv", "heads"] = "none",
    heads: int = 0,
    kv_heads: int = 0,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + boost(lambda * sum_k w_k (theta_k - base))"""

def ties(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    density: float | Sequence[float] = 1.0,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
    majority_sign_method: Literal["total", "frequency"] = "total",
    merge_func: Literal["mean", "sum", "max"] = "mean",
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * disjoint mean of the trimmed deltas"""

def ties_sb(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float],
    density: float | Sequence[float] = 1.0,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
    beta: float = 0.2,
    matrices: Literal["attn_mlp", "all"] = "attn_mlp",
    null_space: Literal["keep", "reference"] = "keep",
    splitting: Literal["none", "qkv", "heads"] = "none",
    heads: int = 0,
    kv_heads: int = 0,
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + boost(lambda * disjoint mean of the trimmed deltas)"""

def tsv_c(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    share: float,
    lambda_: float = 1.0,
    matrices: Literal["attn_mlp", "all"] = "attn_mlp",
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * U_r diag(s_r) V_r^T"""

def tsvm(
    base: Tensor,
    tensors: Sequence[Tensor] | Tensor,
    *,
    weight: float | Sequence[float] = 1.0,
    lambda_: float = 1.0,
    matrices: Literal["attn_mlp", "all"] = "attn_mlp",
    null_space: Literal["keep", "reference"] = "keep",
    lines: Mapping[str, Any] | None = None,
    svc: Mapping[str, Any] | None = None,
    boost: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """theta = base + lambda * polar([U_1 .. U_T]) diag(s_1 .. s_T) polar([V_1 .. V_T])^T"""
