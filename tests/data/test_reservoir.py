"""Articles are drawn from a stream of any length, evenly, and no more of them are held."""

from collections import Counter

from lib.data.corpus import reservoir


def test_a_short_stream_is_taken_whole_and_in_order() -> None:
    texts = [f"article {number}" for number in range(7)]
    assert reservoir(iter(texts), 7) == reservoir(iter(texts), 20) == texts


def test_a_draw_is_in_the_order_of_the_stream_and_told_by_its_seed() -> None:
    texts = [f"{number:04}" for number in range(1000)]
    drawn = reservoir(iter(texts), 50)
    assert drawn == sorted(set(drawn)) and len(drawn) == 50
    assert drawn == reservoir(iter(texts), 50) != reservoir(iter(texts), 50, seed=2)


def test_every_place_of_the_stream_is_as_likely() -> None:
    """Of 2,000 draws of 5 of 20 each text is in 500, give or take five standard deviations."""
    texts = [str(number) for number in range(20)]
    counts = Counter(text for seed in range(2000) for text in reservoir(texts, 5, seed))
    assert set(counts) == set(texts)
    assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in counts.values())
