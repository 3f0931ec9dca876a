"""The counter-based random numbers: known answers, and independence of chunking and offset."""

import pytest
import torch
from kernel_cases import variants

from fastmerge import kernels
from fastmerge.kernels.philox import drop_threshold, keep_mask, philox4x32, random_words, tensor_key

# kat_vectors of Random123: counter, key, result of philox4x32-10.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    assert philox4x32(torch.tensor(counter), key[1] << 32 | key[0]).tolist() == expected


@pytest.mark.parametrize("offset", [0, 1, 7, 12345, 2**32 - 9, 2**35 - 8 * 700, 2**35 + 3, 2**40 + 1])
@pytest.mark.parametrize("drop", [0, 1, 0x80000000, 0x8000FFFF, 0xFFFFFFFF, 2**32])
def test_masks_of_every_backend_agree(offset, drop):
    key, model, count = tensor_key(7, "model.norm.weight"), 3, 3000
    expected = keep_mask(key, model, drop, offset, count)
    ones, zeros, out = torch.ones(count), torch.zeros(count), torch.empty(count)
    for variant in variants():
        with variant.active():
            rule = kernels.keep_random(key, model, drop)
            kernels.sparse_merge(out, zeros, [ones], factors=[1.0], keeps=[rule], offset=offset)
        assert torch.equal(out == 1, expected), variant.label


def test_equal_high_halves_are_decided_by_the_low_halves():
    """A drop threshold that equals the high half of a word, and lies on either side of its low half."""
    key, words = 99, random_words(99, 0, 0, 64)
    ones, out = torch.ones(64), torch.empty(64)
    for word in words[:20].tolist():
        for drop in (word, word + 1):
            for variant in variants():
                with variant.active():
                    rule = kernels.keep_random(key, 0, drop)
                    kernels.sparse_merge(out, torch.zeros(64), [ones], factors=[1.0], keeps=[rule])
                assert torch.equal(out == 1, words >= drop), variant.label


def test_words_do_not_depend_on_the_chunking():
    whole = random_words(1, 2, 5, 1000)
    parts = torch.cat([random_words(1, 2, 5 + i, min(77, 1000 - i)) for i in range(0, 1000, 77)])
    assert torch.equal(whole, parts)


def test_words_are_uniform_and_differ_between_models_and_keys():
    words = random_words(tensor_key(0, "a"), 0, 0, 1 << 16).double() / 2**32
    # Six standard deviations of the mean of 65536 uniform numbers.
    assert abs(words.mean().item() - 0.5) < 6 / (12 * 65536) ** 0.5
    assert not torch.equal(random_words(1, 0, 0, 64), random_words(1, 1, 0, 64))
    assert tensor_key(0, "a") != tensor_key(1, "a") != tensor_key(1, "b")


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match=r"seed is -1; expected 0 <= seed < 2\*\*64"):
        tensor_key(-1, "a")
    with pytest.raises(ValueError, match=r"drop probability is 1\.5; expected 0 <= p <= 1"):
        drop_threshold(1.5)
    assert (drop_threshold(0.0), drop_threshold(0.5), drop_threshold(1.0)) == (0, 2**31, 2**32)
