"""An option is obeyed or refused: no option is dropped without a word."""

import pytest
from click.testing import CliRunner

from keras_rcl.cli.app import cli
from keras_rcl.cli.parsing import parse_attacks


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("attack m --attack pgd:epsilon=4/255 --epsilon 8/255", "sets epsilon as well"),
        ("attack m --attack pgd:num_restarts=2 --restarts 3", "sets num_restarts as well"),
        ("attack m --attack fgsm:protocol=cusin-repo --protocol pixel", "sets protocol as well"),
        ("attack m --attack autoattack --restarts 5", "AutoAttack has no restarts to set"),
        ("attack m --attack fgsm --restarts 5", "FGSM has no restarts to set"),
        ("audit m --claim 60% --verifier pgd:epsilon=4/255", "sets epsilon as well"),
        ("export-vnnlib m --attack pgd:epsilon=4/255", "sets epsilon as well"),
        ("verify m --method crown --timeout 10", "--timeout has no effect"),
        ("verify m --no-attack --seed 3", "--seed has no effect"),
        ("verify m --no-attack --batch-size 3", "--batch-size has no effect"),
        ("fit --no-compare --compare at", "--compare has no effect"),
        ("report --paper wang --processes 2", "--processes has no effect"),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, words.split())
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1, result.output
    assert not list(tmp_path.iterdir())


def test_options_with_an_effect_are_obeyed():
    """Restarts reach the attacks that have some, where others have none."""
    fgsm, pgd = parse_attacks(["fgsm", "pgd"], restarts=3, epsilons="4/255")
    assert (pgd.num_restarts, pgd.epsilon, fgsm.epsilon) == (3, 4 / 255, 4 / 255)
