"""The command `attack`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.cli.completion import complete_attack
from keras_rcl.cli.parsing import parse_attacks
from keras_rcl.cli.start import join_workers, print_advice, print_model_notes, progress_of
from keras_rcl.report.tables import attack_table, corruption_table, has_attacks, protocol_table
from keras_rcl.storage.atomic import json_text
from keras_rcl.vocabulary.attacks import ALIASES, ATTACKS
from keras_rcl.vocabulary.threat import PROTOCOLS

EVALUATING = [name for name, attack in ATTACKS.items() if not attack.training_only]
"""The attacks that a trained model can be evaluated by."""


@click.command(short_help="Attack a model and report its robust accuracy.")
@click.argument("model", type=shared.FOLDER)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar=shared.ATTACK_SYNTAX,
    shell_complete=complete_attack,
    help=f"One of {', '.join([*EVALUATING, *ALIASES])}; may be repeated; fgsm and pgd-40 by default.",
)
@click.option(
    "--transfer-from",
    "transfers",
    multiple=True,
    metavar="MODEL",
    type=click.Path(),
    help="Also craft the attacks on this SavedModel or .keras file; may be repeated.",
)
@click.option(
    "--protocol",
    type=click.Choice([*PROTOCOLS, "all"]),
    help="The coordinates that epsilon is measured in, pixel by default; all reports all of them side by side.",
)
@shared.epsilons_option(
    "A list of epsilons, such as 1/255,2/255,4/255,8/255,16/255. Each attack runs at each; attacks that look for "
    "the nearest adversarial image run once."
)
@click.option("--restarts", type=shared.COUNT, help="The number of random restarts of attacks that have restarts.")
@shared.data_options()
@shared.foreign_model_options
@shared.attack_dtype_option(default="float32", show_default=True)
@shared.workers_option
@shared.output_dir_option("attacks/<model>")
@click.option("--save-images", is_flag=True, help="Also write the adversarial images, adversarial.npz.")
@click.option("--geometry", is_flag=True, help="Also measure the geometry of the embeddings, for the record.")
@shared.overwrite_option("Replace the folder, or an interrupted attack.")
@shared.json_option("the record")
def attack(model, attacks, transfers, protocol, epsilons, restarts, as_json, workers, **options):
    """Attack a SavedModel or .keras file: one that was made here, or any from images to logits or probabilities.

    If the command is interrupted or killed, the same command resumes it.
    """
    chosen = parse_attacks(attacks or ("fgsm", "pgd-40"), transfers, epsilons, restarts, protocol)
    workers = join_workers(workers)
    from keras_rcl.workflows.attack import attack

    if workers.chief:
        print_advice(attack_dtype=options["attack_dtype"])
    with progress_of(workers) as progress:
        record, written = attack(model, chosen, workers=workers, progress=progress, **options)
    if not workers.chief:
        return
    print_model_notes(record["model"])
    if as_json:
        click.echo(json_text(record))
        return
    pixels = record["protocol"] == "pixel"
    warnings = "".join(f"\nwarning: {line}" for line in record["warnings"])
    if "corruptions" in record:
        click.echo(
            f"{corruption_table(record)}\n\naccuracy in % of {record['images']} images, each under each corruption\n"
        )
    if not has_attacks(record):
        click.echo(f"clean accuracy {record['clean_accuracy']:.1%}{warnings}\nwritten to {written}")
        return
    click.echo(
        f"{attack_table(record) if pixels else protocol_table(record)}{warnings}\n\n"
        f"in % of {record['images']} images of {record['data']['name']} ({record['data']['part']}), "
        f"{record['protocol']} protocol; an image that is misclassified before the attack counts as wrong"
        f"{'' if pixels else '; epsilon in the units of the protocol, distances in pixels'}\nwritten to {written}"
    )
