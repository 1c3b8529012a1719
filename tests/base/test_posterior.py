from pipeline.base.posterior import keyed_seed


def test_keyed_seeds_depend_on_every_part_and_its_place() -> None:
    seeds = {keyed_seed(*parts) for parts in [(0, "a"), (0, "b"), (1, "a"), ("a", 0), ("0a",), (0, "a", 0)]}
    assert len(seeds) == 6
    assert keyed_seed(0, "a") == keyed_seed(0, "a") and all(0 <= seed < 2**63 for seed in seeds)
