"""All processes of one start agree on a name, whatever earlier starts left on the store."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch.distributed as dist

from runtime.rounds import agree_on_round


def start_all(store: dist.Store, world_size: int, latecomer: int | None = None) -> list[str]:
    """The names that the ranks end with; the latecomer starts last."""
    names = [""] * world_size

    def start(rank: int) -> None:
        time.sleep(0.2 if rank == latecomer else random.random() / 50)
        names[rank] = agree_on_round(store, rank, world_size, timeout=20)

    threads = [threading.Thread(target=start, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return names


@pytest.mark.parametrize("latecomer", [None, 0, 2])
def test_every_start_has_a_name_of_its_own(latecomer):
    store = dist.HashStore()
    rounds = [start_all(store, 4, latecomer) for _ in range(3)]
    assert all(len(set(names)) == 1 and names[0] for names in rounds)
    assert len({names[0] for names in rounds}) == 3


def test_another_number_of_ranks():
    store = dist.HashStore()
    assert len(set(start_all(store, 4))) == len(set(start_all(store, 2))) == len(set(start_all(store, 6))) == 1


def test_a_start_after_one_that_failed_half_way():
    """A rank of the start before showed its number and died: its answer is given, and read by nobody."""
    store = dist.HashStore()
    store.set("number1", "dead")
    assert len(set(start_all(store, 2, latecomer=1))) == 1
    assert store.check(["answerdead"])


@pytest.mark.parametrize(
    ("rank", "said"), [(0, "^3 of 4 processes have not come: rank 1, 2, 3$"), (1, "^rank 0 has not")]
)
def test_a_process_that_does_not_come_is_not_waited_for_forever(rank, said):
    with pytest.raises(TimeoutError, match=said):
        agree_on_round(dist.HashStore(), rank, 4, timeout=0.05)


def test_those_who_came_do_not_go_on_without_the_others():
    store, failed = dist.HashStore(), {}

    def start(rank: int) -> None:
        try:
            agree_on_round(store, rank, 4, timeout=0.5)
        except TimeoutError as error:
            failed[rank] = str(error)

    threads = [threading.Thread(target=start, args=(rank,)) for rank in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == {
        0: "2 of 4 processes have not come: rank 1, 3",
        2: "not all processes have come; rank 0 says which",
    }
