"""What a search has found is kept, and taken again only for the same network, frames, contract and method."""

import os

import pytest
import torch

from calibration.int8.cache import RecipeCache
from calibration.int8.equalise import Factors
from calibration.int8.recipe import Int8Recipe, LayerRecipe, Step
from calibration.int8.sensitivity import Damage

DEPENDS_ON = {"weights": "a", "contract": {"imgsz": (64, 64)}, "frames": "b", "method": "mse"}


@pytest.fixture
def recipe():
    torch.manual_seed(0)
    layer = LayerRecipe(3.5, (1,), 0.25, torch.randint(-127, 128, (4, 27), dtype=torch.int8), torch.rand(4), 1e-5)
    return Int8Recipe(
        {"a": Factors(torch.rand(4), torch.rand(4))},
        {"a": layer},
        {"b": "the first layer"},
        {"a": 0.75, "b": 0.25},
        0.5,
        {"a": 1.0},
        (Step("one", 0.5, Damage(0.1, 0.9)),),
        Damage(0.1, 0.9),
    )


def test_what_was_saved_comes_back_whole(tmp_path, recipe):
    cache = RecipeCache(tmp_path / "int8", DEPENDS_ON)
    assert cache.load() is None
    cache.save(recipe)
    got = RecipeCache(tmp_path / "int8", DEPENDS_ON).load()
    assert got.as_dict() == recipe.as_dict()
    assert got.share == recipe.share
    assert (got.power, got.steps, got.result) == (recipe.power, recipe.steps, recipe.result)
    assert torch.equal(got.layers["a"].levels, recipe.layers["a"].levels)
    assert got.layers["a"].levels.dtype == torch.int8
    assert torch.equal(got.layers["a"].scales, recipe.layers["a"].scales)
    assert torch.equal(got.factors["a"].inputs, recipe.factors["a"].inputs)
    assert os.listdir(tmp_path / "int8") == [cache.path.name]


@pytest.mark.parametrize(
    "change", [{"weights": "c"}, {"contract": {"imgsz": (64, 32)}}, {"frames": "c"}, {"method": "max"}]
)
def test_another_network_contract_frames_or_method_is_another_search(tmp_path, recipe, change):
    cache = RecipeCache(tmp_path, DEPENDS_ON)
    cache.save(recipe)
    other = RecipeCache(tmp_path, DEPENDS_ON | change)
    assert other.load() is None
    os.replace(cache.path, other.path)  # under the other's name it is still not the other's
    assert other.load() is None


def test_a_damaged_file_is_as_none(tmp_path, recipe):
    cache = RecipeCache(tmp_path, DEPENDS_ON)
    cache.save(recipe)
    whole = cache.path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"x" * len(whole)):
        cache.path.write_bytes(damaged)
        assert cache.load() is None
    for place in range(60, len(whole), 97):
        cache.path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        got = cache.load()
        assert got is None or got.as_dict() == recipe.as_dict()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, recipe):
    (tmp_path / "file").write_text("")
    RecipeCache(tmp_path / "file", DEPENDS_ON).save(recipe)
    assert os.listdir(tmp_path) == ["file"]
