"""`arrol-eval plan`."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from evals.cli import app
from evals.sampling.run_settings import read_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_planned(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.n == 32  # maj@32 and pass@16 are in the same report
    result = CliRunner().invoke(app, ["plan", "--recipe", name], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert all(benchmark in result.output for benchmark in recipe.benchmarks)
    assert "tokens/s" in result.output


def test_a_recipe_covers_the_papers_models() -> None:
    assert {"qwen3-1.7b", "qwen3-4b", "qwen3-8b", "llama-3.2-1b"} <= set(recipe_names())


def test_limits_and_seeds_change_a_plan() -> None:
    def tokens(*options: str) -> int:
        arguments = ["plan", "amc23", "--model", "Qwen/Qwen3-4B", "--max-tokens", "1000", *options]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
        assert result.exit_code == 0, result.output
        line = next(line for line in result.output.splitlines() if line.strip().startswith("amc23"))
        return int(line.split()[3].replace(",", ""))

    assert tokens() == 40 * 32 * 500
    assert tokens("--limit", "10", "--seeds", "3", "--mean-tokens", "100") == 10 * 32 * 3 * 100
    # Half of the traces end at token 100 in the pruned pass; that of the others is not known.
    pruned = 0.5 * 500 + 0.5 * 100
    by_head = ("--head", "pocket", "--detection", "100")
    assert tokens(*by_head) == 40 * 32 * (500 + pruned)
    assert tokens(*by_head, "--stopping", "none") == 40 * 32 * 500
    assert tokens(*by_head, "--stopping", "pruned", "--stopping", "waves") == 40 * 32 * (2 * 500 + pruned)
    assert tokens("--stopping", "consensus") == 40 * 32 * 2 * 500


def test_a_plan_says_which_passes_it_counts_in_full() -> None:
    result = CliRunner().invoke(app, ["plan", "--recipe", "pocket"], env={"COLUMNS": "400"})
    assert (
        "a pruned pass; the passes full, threshold, budget, deepconf-online, consensus at the cost"
        in result.output
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["amc23"], "name benchmarks and a model"),
        (["amc23", "--model", "Qwen/Qwen3-8B", "--gpu", "abacus"], "there is no GPU 'abacus'; known: l4"),
        (["amc23", "--model", "Qwen/Qwen3-8B", "--gpu", "l4", "--max-tokens", "99999"], "use more or larger ones"),
        (["amc32", "--model", "Qwen/Qwen3-8B"], "there is no benchmark 'amc32'"),
    ],
)
def test_bad_plans_end_with_words(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in result.output
