from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlflow_triton.tensors import memory
from mlflow_triton.tensors.memory import KEPT, MOST_KEPT, SMALLEST, STEP, empty

if TYPE_CHECKING:
    from collections.abc import Iterator

UINT8 = np.dtype(np.uint8)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Begin and end with no memory kept."""
    memory._idle.clear()
    yield
    memory._idle.clear()


def address(array: np.ndarray[Any, Any]) -> int:
    """Return where an array's memory is."""
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("dtype", ["?", "<f2", "<i8", "<f4"])
@pytest.mark.parametrize(
    "shape", [(), (0,), (3, 0, 5), (7, 5), (SMALLEST // 8,), (SMALLEST + 1, 1), (2, 3, STEP // 8)]
)
def test_an_array_is_like_any_other(shape: tuple[int, ...], dtype: str) -> None:
    """An array of any size and type is contiguous and writable, and can be pickled."""
    array = empty(shape, np.dtype(dtype))
    array[...] = 1
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.carray
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array.ravel()[:100])), 1)  # noqa: S301 - own


def test_memory_is_used_again_when_nobody_sees_it() -> None:
    """Memory is given to another array only when the last view of the former one is gone."""
    first = empty((SMALLEST + 5,), UINT8)
    first[:] = 1
    place, view = address(first), first[5:9].reshape(2, 2)
    del first
    second = empty((2 * SMALLEST,), UINT8)
    second[:] = 2
    assert address(second) != place
    assert view.tolist() == [[1, 1], [1, 1]]
    del view
    assert address(empty((SMALLEST // 8 + 1,), np.dtype("<f8"))) == place


@pytest.mark.parametrize(("size", "kept"), [(SMALLEST, MOST_KEPT), (KEPT // 4, 4), (KEPT, 1)])
def test_memory_that_is_kept_has_a_limit(size: int, kept: int) -> None:
    """No more than a few blocks are kept, and no more than a number of bytes."""
    arrays = [empty((size,), UINT8) for _ in range(kept + 2)]
    del arrays
    assert len(memory._idle) == kept
    del (array := [empty((KEPT + 1,), UINT8)])[0]
    assert not array
    assert not memory._idle


def test_new_memory_takes_the_place_of_what_is_kept() -> None:
    """Memory for an array of another size leaves no more kept than the limit and it allow."""
    arrays = [empty((KEPT // 4,), UINT8) for _ in range(4)]
    places = [address(array) for array in arrays]
    del arrays
    held = empty((KEPT // 2,), UINT8)
    assert len(memory._idle) == 2
    again = [empty((KEPT // 4,), UINT8) for _ in range(2)]
    assert {address(array) for array in again} < set(places)
    assert len(held) == KEPT // 2


@pytest.mark.parametrize("size", [1 << 45, 1 << 62])
def test_more_memory_than_there_is(size: int) -> None:
    """An array that is too large is a MemoryError."""
    with pytest.raises(MemoryError):
        empty((size,), np.dtype("<f8"))


def test_threads() -> None:
    """No two arrays that live at once share memory, whichever threads make them."""

    def work(number: int) -> bool:
        fine = True
        for turn in range(20):
            array = empty((SMALLEST,), UINT8)[::4096]
            array[:] = number + turn
            fine = fine and bool((array == number + turn).all())
        return fine

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(0, 100, 25)))


def test_a_fork() -> None:
    """What a forked process writes into an array stays its own."""
    array = empty((SMALLEST,), UINT8)
    array[:] = 1
    child = os.fork()
    if child == 0:
        array[:] = 2
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (array == 1).all()
