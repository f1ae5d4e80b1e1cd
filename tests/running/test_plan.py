"""What a plan says of a device's memory follows from shapes, and is told before anything is allocated."""

import functools
import math

import jax
import pytest

from configs import cards
from experiments import run as command
from rlswarm_jax.errors import UsageError
from rlswarm_jax.qwen import config as qwen_config
from rlswarm_jax.qwen import model, sizes
from rlswarm_jax.running import arguments, plan
from tests.qwen.test_shapes import PUBLISHED

GB = 10**9


def changed(**changes):
    config = cards.get_config("")
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


@functools.cache
def of(**changes):
    return {part.name: part.bytes for part in plan.of_config(changed(**changes))}


@pytest.mark.parametrize("card", cards.CARDS)
def test_a_card_s_config_fits_the_card(card):
    assert plan.run(cards.get_config(f"{card}gb"), f"{card}GB") == 0


def test_the_goals_are_met():
    """All of 0.5B at 8 x (512 + 512) in 16 GB, an adapter of 1.5B in 12 GB, and of 7B in 24 GB."""
    whole, small, large = (cards.get_config(f"{card}gb") for card in (16, 12, 24))
    assert "0.5B" in whole.model.path and not whole.lora.rank and whole.learn.optimizer == "adamw"
    assert "1.5B" in small.model.path and small.lora.rank and "7B" in large.model.path and large.lora.rank
    for config in (whole, small, large):
        assert (config.sampling.max_prompt_tokens, config.sampling.max_new_tokens) == (512, 512)
        tile = plan.work_of(config, plan.model_of(config)).tile
        assert tile.sequences * tile.width == 8 * 1024


def test_weights_moments_and_gradients_are_as_many_as_the_parameters():
    count = PUBLISHED["Qwen2.5-0.5B"][1]
    parts = of()
    assert parts["weights (float32)"] == 4 * count
    assert parts["optimiser (adamw)"] == 8 * count + 4
    assert parts["gradients of a tile, and their sum"] == 8 * count
    assert parts["copy of the weights to sample with (bfloat16)"] == 2 * count
    assert of(learn__optimizer="adamw_bf16")["optimiser (adamw_bf16)"] == 6 * count + 4
    assert of(learn__optimizer="adafactor")["optimiser (adafactor)"] < count / 50


def test_an_adapter_leaves_the_weights_in_the_dtype_they_are_computed_with():
    count, rank = PUBLISHED["Qwen2.5-0.5B"][1], 16
    parts = of(lora__rank=rank)
    width, mlp, heads, keys = 896, 4864, 14 * 64, 2 * 64
    maps = [(width, heads), (width, keys), (width, keys), (heads, width), (width, mlp), (width, mlp), (mlp, width)]
    adapter = 4 * 24 * rank * sum(a + b for a, b in maps)
    assert parts["weights (bfloat16)"] == 2 * count and parts["adapter of rank 16"] == adapter
    assert parts["gradients of a tile, and their sum"] == 2 * adapter
    assert parts["copy of the weights to sample with (bfloat16)"] == 2 * count
    beside = of(lora__rank=rank, lora__merge=False)
    assert not any(name.startswith("copy") for name in beside)


def test_a_layer_is_kept_as_its_input_where_it_is_computed_again():
    parts = of()
    inputs = 24 * 8 * 1024 * 896 * 2
    assert inputs < parts["activations kept (remat layer)"] < 1.3 * inputs
    everything = of(learn__remat="none")
    assert everything["activations kept (remat none)"] > 15 * parts["activations kept (remat layer)"]
    half = of(learn__microbatch_rows=2)["activations kept (remat layer)"]
    assert half / parts["activations kept (remat layer)"] == pytest.approx(0.5, rel=0.01)


def test_the_cache_holds_prompts_once_and_what_is_sampled():
    config = changed()
    slots = 16 * 512 + 64 * 512  # of an evaluation: 16 at a time, and 64 prompts
    assert of()["key/value cache (bfloat16)"] == 24 * 2 * 2 * 64 * 2 * slots
    assert config.evaluation.rows == 16 and config.evaluation.problems == 64
    quarter = of(sampling__kv_dtype="int8")["key/value cache (int8)"]
    assert quarter == 24 * 2 * 2 * (64 + 4) * slots


def test_split_weights_are_a_device_s_part():
    whole, split = of(), of(devices__fsdp=4)
    assert split["weights (float32)"] == pytest.approx(whole["weights (float32)"] / 4, rel=1e-3)
    assert split["optimiser (adamw)"] == pytest.approx(whole["optimiser (adamw)"] / 4, rel=1e-3)
    assert split["a layer and the head, gathered"] > 151936 * 896 * 4


@pytest.mark.parametrize("name", sizes.SIZES)
def test_known_sizes_are_the_published_ones(name):
    fields, count = PUBLISHED[name]
    config, theirs = sizes.of_name(f"Qwen/{name}-Instruct"), qwen_config.from_hf(fields)
    assert config.num_parameters == count
    leaf = lambda x: isinstance(x, tuple)  # noqa: E731
    same = jax.tree.map(lambda a, b: a == b, model.param_shapes(config), model.param_shapes(theirs), is_leaf=leaf)
    assert all(jax.tree.leaves(same))


def test_a_name_that_is_no_size_is_looked_for():
    assert sizes.of_name("somebody/Qwen2.5-0.5B") is None and sizes.of_name("Qwen/Qwen2.5-0.4B") is None
    with pytest.raises(UsageError, match="model directory '/no/such/place' does not exist"):
        plan.of_config(changed(model__path="/no/such/place"))


def test_it_is_printed_part_by_part_and_nothing_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"--config={cards.__file__}:16gb", "--plan", "--memory"]
    assert command.run(arguments.parse([*words, "16GB"])) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in of()) and "11.51 GB at the peak, of 16.00 GB" in said and "it fits" in said
    assert command.run(arguments.parse([*words, "11 GB"])) == 1
    assert "it does not fit" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="--memory is 'much'; expected a size such as 16GB"):
        command.run(arguments.parse([*words, "much"]))


@pytest.mark.parametrize(("asked", "wanted"), [("16GB", 16 * GB), ("1.5 gib", 3 * 2**29), ("800", 800)])
def test_a_size_of_memory(asked, wanted):
    assert plan.memory(asked) == wanted


def test_without_one_it_is_that_of_this_machine():
    assert 10**8 < plan.memory("") < 10**14


def test_a_simulation_keeps_all_its_nodes_on_one_device(capsys):
    config = changed(driver="simulate", swarm__nodes=3)
    always = sum(part.bytes for part in plan.of_config(config) if part.when == plan.ALWAYS)
    plan.run(config, "16GB")
    said = capsys.readouterr().out
    assert "3 nodes share the device" in said
    one = plan.peak(plan.of_config(config))
    assert f"{(one + 2 * always) / GB:.2f} GB at the peak" in said and math.isclose(one, 11.51 * GB, rel_tol=0.01)
