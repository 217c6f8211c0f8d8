"""Which tokens end up in which minibatch."""

from __future__ import annotations

import pytest
import torch

from rnnfast.text.windows import RandomWindows, SequentialWindows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sequential(count: int = 100, batch_size: int = 3, num_steps: int = 4, seed: int = 0):
    return SequentialWindows(
        torch.arange(count), batch_size=batch_size, num_steps=num_steps, generator=generator(seed)
    )


def test_rows_go_on_from_minibatch_to_minibatch():
    windows = sequential()
    for _ in range(20):
        batches = list(windows)
        x = torch.cat([x for x, _ in batches])  # [steps, B]
        y = torch.cat([y for _, y in batches])
        offset = int(x[0, 0])
        length = (100 - offset - 1) // 3
        assert torch.equal(x[0], offset + torch.arange(3) * length)
        assert torch.equal(x, x[0] + torch.arange(len(x))[:, None])
        assert torch.equal(y, x + 1)
        assert len(batches) == length // 4


def test_offset_covers_zero_to_num_steps():
    windows = sequential()
    seen = {int(next(iter(windows))[0][0, 0]) for _ in range(200)}
    assert seen == {0, 1, 2, 3, 4}


def test_the_chapters_epoch_has_eight_minibatches_of_35_by_32():
    windows = sequential(count=10_000, batch_size=32, num_steps=35)
    for _ in range(100):
        batches = list(windows)
        assert len(batches) == 8
        for x, y in batches:
            assert x.shape == y.shape == (35, 32)
            assert x.is_contiguous()
            assert y.is_contiguous()


def test_same_seed_same_order():
    one, two, other = sequential(seed=5), sequential(seed=5), sequential(seed=6)
    first = [next(iter(one))[0] for _ in range(10)]
    assert all(torch.equal(x, next(iter(two))[0]) for x in first)
    assert not all(torch.equal(x, next(iter(other))[0]) for x in first)


def test_random_windows_cover_the_text_once_in_any_order():
    windows = RandomWindows(torch.arange(100), batch_size=3, num_steps=4, generator=generator())
    orders = []
    for _ in range(10):
        batches = list(windows)
        starts = torch.cat([x[0] for x, _ in batches])
        orders.append(starts.tolist())
        assert len(set(starts.tolist())) == len(starts)
        assert len(set((starts % 4).tolist())) == 1
        for x, y in batches:
            assert x.shape == (4, 3)
            assert torch.equal(x, x[0] + torch.arange(4)[:, None])
            assert torch.equal(y, x + 1)
    assert any(order != sorted(order) for order in orders)


@pytest.mark.parametrize("kind", [SequentialWindows, RandomWindows])
def test_text_shorter_than_a_minibatch_is_refused(kind):
    options = {"batch_size": 3, "num_steps": 4, "generator": generator()}
    with pytest.raises(ValueError, match=r"the text has 16 tokens; .* needs at least 17"):
        kind(torch.arange(16), **options)
    shortest = kind(torch.arange(17), **options)
    assert all(len(list(shortest)) == 1 for _ in range(50))


@pytest.mark.parametrize("kind", [SequentialWindows, RandomWindows])
def test_bad_arguments_are_refused(kind):
    with pytest.raises(ValueError, match="must be positive, got 0 and 4"):
        kind(torch.arange(100), batch_size=0, num_steps=4, generator=generator())
    with pytest.raises(ValueError, match=r"must be int64 \[N\], got torch.float32"):
        kind(torch.rand(100), batch_size=3, num_steps=4, generator=generator())
