r"""Subspace Boosting of matrices that are split over the ranks of a process group, by rows or by columns.

Two ways. For m x n float32, m >= n, on R ranks, with T Gram matrices per polar factor (8 of a square matrix, 4 of one
that is 1.3 times as long as wide; 3 and 2 more per extension of the schedule, 1 where the last step is made twice):

``boost_shards``     every matrix goes to one rank, is boosted there whole, and its parts go back. Per matrix all ranks
                     together send 8 m n (R - 1) / R bytes, and compute what one GPU alone would. Matrices are dealt
                     out by cost, m n^2.
``boost_together``   all ranks work on one matrix: X'X is the sum over ranks of that of their rows. Per matrix all ranks
                     together send 8 n^2 (R - 1) T bytes, and what is made of X'X is computed R times.

For 8192 x 8192 on 8 ranks that is 0.5 GB beside 30 GB. So matrices are dealt out, whenever there are as many as ranks,
as in a language model, and one fits a GPU with its work space (6 m n + 9 n^2 numbers). ``boost_together`` is for one
matrix that does not, or that is alone and much longer than wide.

The parts of a DTensor are its ``to_local()``; a replicated one needs neither function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from ._by_products import by_products
from ._exact import by_gram
from ._info import Info
from ._matrices import check_choice, check_matrices, full_float32
from ._routes import NULLS
from ._rules import Boost, noise_floor
from .boost import subspace_boost

__all__ = ["boost_part", "boost_shards", "boost_together", "deal"]


def deal(costs: Sequence[float], ranks: int) -> list[int]:
    """Return the rank of each cost: the largest first, to the rank that has least. At most 4/3 of the best balance."""
    loads, owners = [0.0] * ranks, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owner = min(range(ranks), key=loads.__getitem__)
        owners[index] = owner
        loads[owner] += costs[index]
    return owners


def boost_shards(
    shards: Sequence[Tensor],
    beta: float = 0.01,
    *,
    dim: int = -2,
    group: dist.ProcessGroup | None = None,
    tol: float = 1e-5,
    null: str = "keep",
    method: str = "auto",
    noise: float = 0.0,
) -> tuple[list[Tensor], list[list[Info]]]:
    """Return this rank's parts of the boosted matrices, and what was done with each; the same on every rank.

    A collective call: every rank of ``group`` takes part, with its parts of the same matrices in the same order.

    Args:
        shards: this rank's parts, [..., m, n] float32, finite; their sizes along ``dim`` may differ and may be 0.
        dim:    along which all are split: -2 (rows) or -1 (columns).
        group:  by default the world.
        beta, tol, null, method, noise: as in ``subspace_boost``, which gives the same bits for the whole matrix.
    Raises:
        ValueError: an argument is out of range, on whichever rank, or ranks have parts of different matrices; raised
            by all of them.
        RuntimeError: boosting failed on another rank, which raises what went wrong. No rank is left waiting for it.
    """
    _check_dim(dim)
    # Wrong arguments are refused here, by all ranks: one that raises later leaves the others waiting for it.
    subspace_boost(torch.zeros(0, 1, 1), beta, tol=tol, null=null, method=method, noise=noise)
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    told: list[tuple[list[tuple[int, ...]], str | None]] = [([], None)] * ranks
    dist.all_gather_object(told, ([tuple(shard.shape) for shard in shards], _problem(shards)), group)
    for r, (shapes, problem) in enumerate(told):
        if problem or (problem := _difference(shapes, told[0][0], dim)):
            raise ValueError(f"on rank {r}, {problem}")
    sizes = [[shape[dim] for shape in shapes] for shapes, _ in told]
    wholes = [_resized(shard.shape, dim, sum(row[i] for row in sizes)) for i, shard in enumerate(shards)]
    owners = deal([whole.numel() * min(whole[-2:]) for whole in wholes], ranks)
    hands = [[i for i, owner in enumerate(owners) if owner == r] for r in range(ranks)]
    infos: dict[int, list[Info]] = {}
    with _Agreement(group) as agreement:
        results = [torch.empty(shard.shape, dtype=shard.dtype, device=shard.device) for shard in shards]
        # A rank holds one whole matrix at a time.
        for turn in range(max(map(len, hands))):
            there = {owner: hand[turn] for owner, hand in enumerate(hands) if turn < len(hand)}
            i, parts = there.get(rank), dict[int, Tensor]()
            if i is not None:
                parts = {r: shards[i].new_empty(_resized(wholes[i], dim, sizes[r][i])) for r in range(ranks)}
            _exchange({owner: shards[j] for owner, j in there.items()}, parts, agreement)
            if i is not None:
                whole = torch.cat(list(parts.values()), dim)
                parts.clear()
                boosted, infos[i] = subspace_boost(whole, beta, tol=tol, null=null, method=method, noise=noise)
                parts = dict(enumerate(boosted.split([row[i] for row in sizes], dim)))
            _exchange(parts, {owner: results[j] for owner, j in there.items()}, agreement)
    everyone: list[dict[int, list[Info]]] = [{}] * ranks
    dist.all_gather_object(everyone, infos, group)
    return results, [everyone[owner][i] for i, owner in enumerate(owners)]


def boost_together(
    shard: Tensor,
    beta: float = 0.01,
    *,
    dim: int = -2,
    group: dist.ProcessGroup | None = None,
    tol: float = 1e-5,
    null: str = "keep",
    noise: float = 0.0,
) -> tuple[Tensor, Info]:
    """Return this rank's part of one boosted matrix, and what was done; the same on every rank.

    A collective call. Gram matrices [n, n] are added up over the ranks, and what follows from them is computed by all
    of them alike: the ranks have the same kind of GPU and the same versions. Where the certificate of the polynomial
    iteration fails, the Gram matrix in float64 takes over, and then ``boost_shards``.

    Args:
        shard: this rank's part of a matrix, [m_r, n] or [m, n_r] float32; it may be empty.
        dim:   along which it is split: -2 (rows) or -1 (columns). It must be the longer side.
        beta, tol, null, noise: as in ``subspace_boost``.
    Raises:
        ValueError: an argument is out of range, or the matrix is split along its shorter side.
    """
    _check_dim(dim)
    check_choice("null", null, NULLS)
    if shard.dim() != 2 or shard.dtype != torch.float32:
        raise ValueError(f"shard has shape {tuple(shard.shape)} and dtype {shard.dtype}; expected float32 [m, n]")
    with _Agreement(group) as agreement:

        def total(part: Tensor) -> Tensor:
            agreement.check()
            dist.all_reduce(part, group=group)
            return part

        done = boost_part(shard, beta, dim=dim, tol=tol, null=null, noise=noise, total=total)
    if done is not None:
        return done
    (result,), ((info,),) = boost_shards(
        [shard], beta, dim=dim, group=group, tol=tol, null=null, method="svd", noise=noise
    )
    return result, info


def boost_part(
    shard: Tensor,
    beta: float,
    *,
    dim: int,
    total: Callable[[Tensor], Tensor],
    tol: float = 1e-5,
    null: str = "keep",
    noise: float = 0.0,
) -> tuple[Tensor, Info] | None:
    """Return what ``boost_together`` does, for a caller that adds up; None where the certificates fail.

    ``total`` returns the sum over the ranks, the same bits on all of them, and may overwrite its argument. The other
    arguments are those of ``boost_together``, and so are the errors, which are raised on all ranks.
    """
    x = shard if dim == -2 else shard.mT
    rows, n = len(x), x.shape[1]
    # An empty part takes part with a row of zeros.
    x = (x if rows else x.new_zeros(1, n)).unsqueeze(0)

    squares = torch.linalg.vector_norm(x, dtype=torch.float64).square()
    m, square = total(torch.stack([squares.new_tensor(rows), squares])).tolist()
    norm = math.sqrt(square)
    if m < n:
        raise ValueError(f"shard is a part of {m:.0f} x {n}, split along the shorter side; use boost_shards")
    if not math.isfinite(norm):
        raise ValueError(
            "shard, here or on another rank, has elements that are NaN or infinite; expected finite values"
        )
    if norm == 0:
        return shard.clone(), Info("zero")
    rule, accepted = Boost(beta, noise_floor(noise, (m, n)) / norm), False
    if null == "keep":
        x = x / norm
        with full_float32():
            result, (info,), (accepted,) = by_products(x, rule, total=total, rows=int(m))
            if not accepted:
                result, (info,), (accepted,) = by_gram(x, rule, tol, keep=True, total=total)
    if not accepted:
        return None
    assert info.cut is not None and info.nuclear is not None
    result = (norm * result[0])[:rows]
    info = replace(info, cut=norm * info.cut, nuclear=norm * info.nuclear)
    return (result if dim == -2 else result.mT.contiguous()), info


class _Agreement:
    """A context in which the ranks of a group go on together: what fails on one of them is raised on all.

    Whoever is to exchange something first checks that none has failed. What all ranks raise alike, they may.
    """

    def __init__(self, group: dist.ProcessGroup | None):
        self.group = group

    def check(self) -> None:
        self._settle(None)

    def __enter__(self) -> _Agreement:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, _FailedElsewhere) and (error is None or isinstance(error, Exception)):
            self._settle(error)

    def _settle(self, error: Exception | None) -> None:
        told: list[str | None] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(told, None if error is None else str(error) or type(error).__name__, self.group)
        for r, message in enumerate(told):
            if error is None and message is not None:
                raise _FailedElsewhere(f"on rank {r}, {message}")


class _FailedElsewhere(RuntimeError):
    """Another rank failed."""


def _exchange(sends: dict[int, Tensor], receives: dict[int, Tensor], agreement: _Agreement) -> None:
    """Send one tensor to each rank of ``sends`` while one arrives from each rank of ``receives``."""
    group = agreement.group
    rank = dist.get_rank(group)
    sends = {peer: part.contiguous() for peer, part in sends.items()}
    agreement.check()
    if rank in receives:
        receives[rank].copy_(sends[rank])
    operations = [
        dist.P2POp(call, tensor, peer if group is None else dist.get_global_rank(group, peer), group)
        for call, tensors in ((dist.isend, sends), (dist.irecv, receives))
        for peer, tensor in tensors.items()
        if peer != rank and tensor.numel()
    ]
    for request in dist.batch_isend_irecv(operations) if operations else ():
        request.wait()


def _resized(shape: Sequence[int], dim: int, size: int) -> torch.Size:
    resized = list(shape)
    resized[dim] = size
    return torch.Size(resized)


def _difference(shapes: Sequence[tuple[int, ...]], first: Sequence[tuple[int, ...]], dim: int) -> str | None:
    """Return what keeps parts of these shapes from being of the matrices that rank 0 has parts of, or None."""
    if len(shapes) != len(first):
        return f"there are {len(shapes)} shards; rank 0 has {len(first)}"
    for i, (shape, like) in enumerate(zip(shapes, first, strict=True)):
        if len(shape) != len(like) or _resized(shape, dim, 0) != _resized(like, dim, 0):
            return f"shards[{i}] has shape {shape}, that of rank 0 has {like}; only their sizes along {dim} may differ"
    return None


def _problem(shards: Sequence[Tensor]) -> str | None:
    """Return what is wrong with this rank's parts, or None."""
    try:
        for i, shard in enumerate(shards):
            check_matrices(f"shards[{i}]", shard)
    except ValueError as error:
        return str(error)
    return None


def _check_dim(dim: int) -> None:
    if dim not in (-2, -1):
        raise ValueError(f"dim is {dim}; expected -2 (split by rows) or -1 (by columns)")
