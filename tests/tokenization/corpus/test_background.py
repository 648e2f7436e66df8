import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from cellglot.tokenization.corpus.concurrency import Behind, Helpers, ahead, one_later


def test_reading_ahead_keeps_the_order_and_the_error():
    def items():
        yield from range(5)
        raise ValueError("the file ends here")

    seen = []
    with pytest.raises(ValueError, match="the file ends here"):
        seen.extend(ahead(items()))
    assert seen == [] or seen == list(range(5))
    assert list(ahead(iter([3, 1, 2]))) == [3, 1, 2]


@pytest.mark.parametrize("most", [1, 3])
def test_the_next_items_are_made_while_this_one_is_worked_on(most):
    made = []

    def items():
        for i in range(6):
            made.append(i)
            yield i

    reading = ahead(items(), most)
    assert next(reading) == 0
    deadline = time.monotonic() + 5
    while len(made) < 1 + most and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made == list(range(1 + most))
    reading.close()
    assert made == list(range(1 + most))
    assert list(ahead(range(2), most)) == [0, 1]


@pytest.fixture
def behind():
    behind = Behind(2)
    yield behind
    behind.close()


def test_calls_behind_run_in_order_and_give_their_results(behind):
    written = []
    results = [behind(lambda i: written.append(i) or i**2, i) for i in range(20)]
    behind.wait()
    assert written == list(range(20))
    assert [r.result() for r in results] == [i**2 for i in range(20)]


def test_after_an_error_nothing_runs_and_all_results_are_that_error(behind):
    def fail(number):
        raise OSError(f"no room for {number}")

    written = []
    results = [behind(fail, 1), behind(written.append, 20)]
    with pytest.raises(OSError, match="no room for 1"):
        behind(written.append, 30)
    behind.wait()
    assert written == []
    for result in results:
        with pytest.raises(OSError, match="no room for 1"):
            result.result()


def test_the_caller_is_at_most_so_many_calls_ahead():
    behind, released, given = Behind(2), threading.Semaphore(0), []

    def call():
        for number in range(5):
            behind(released.acquire)
            given.append(number)

    caller = threading.Thread(target=call)
    caller.start()
    for done in range(4):
        deadline = time.monotonic() + 10
        while len(given) < min(done + 2, 5) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(given) == done + 2  # two wait or run, the next one is not taken yet
        released.release()
    caller.join(10)
    assert len(given) == 5
    released.release()
    behind.close()


def test_results_are_given_when_the_next_piece_of_work_has_been_started(behind):
    started = []

    def start():
        for number in range(4):
            started.append(number)
            yield behind(lambda n: n, number)

    seen = [(result, list(started)) for result in one_later(start())]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2, 3]), (3, [0, 1, 2, 3])]
    assert list(one_later([])) == []


def test_helpers_and_this_process_share_the_work_and_results_stay_in_order():
    here, there = [], []

    def work(number):
        (here if threading.current_thread() is threading.main_thread() else there).append(number)
        time.sleep(0.002)
        return number**2

    with ThreadPoolExecutor(2) as pool:
        results = list(Helpers(pool, 2).map(work, lambda number: (work, number), range(40)))
    assert results == [n**2 for n in range(40)]
    assert here and there
    assert sorted(here + there) == list(range(40))


def test_results_are_not_kept_once_they_are_given():
    class Result:
        pass

    references = []

    def work(number):
        time.sleep(0.002)
        result = Result()
        references.append(weakref.ref(result))
        return result

    with ThreadPoolExecutor(2) as pool:
        for _ in Helpers(pool, 2).map(work, lambda number: (work, number), range(40)):
            pass
        gc.collect()
        alive = [reference for reference in references if reference() is not None]
        assert len(alive) <= 3  # the last one given, and the last ones of the two threads


@pytest.mark.parametrize("where", ["here", "there"])
def test_an_error_ends_the_work(where):
    done = []

    def work(number):
        is_here = threading.current_thread() is threading.main_thread()
        if is_here == (where == "here") and number >= 3:
            raise ValueError(f"piece {number} is broken")
        time.sleep(0.005)
        done.append(number)
        return number

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="is broken"):
        list(Helpers(pool, 1).map(work, lambda number: (work, number), range(50)))
    assert len(done) < 50


def test_processes_that_are_gone_are_an_error():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        list(Helpers(pool, 1).map(str, lambda number: (str, number), range(3)))
