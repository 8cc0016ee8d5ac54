"""Philox4x32-10 on Python integers: the slow, obvious twin of `mlmlab/kernels.py`."""

WORD = 2**32


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block: ten rounds, the key advanced after each."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * c0, WORD)
        high_1, low_1 = divmod(0xCD9E8D57 * c2, WORD)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0 = (k0 + 0x9E3779B9) % WORD
        k1 = (k1 + 0xBB67AE85) % WORD
    return c0, c1, c2, c3


def block_of(
    seed: int, domain: int, identity: int, epoch: int, block: int
) -> tuple[int, int, int, int]:
    """The four words of a block, by the counter layout that `mlmlab/random.py` documents."""
    seed %= 2**64
    key = (seed % WORD, seed // WORD)
    counter = (block, epoch + domain * 2**24, identity % WORD, identity // WORD)
    return philox(counter, key)


def words(seed: int, domain: int, identity: int, count: int, epoch: int = 0) -> list[int]:
    """The first `count` words about one id."""
    return [
        block_of(seed, domain, identity, epoch, number // 4)[number % 4] for number in range(count)
    ]
