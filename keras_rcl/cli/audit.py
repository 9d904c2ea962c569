"""The command `audit`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.cli.completion import complete_attack
from keras_rcl.cli.parsing import check_not_in, parse_claim, parse_epsilon
from keras_rcl.cli.start import print_model_notes
from keras_rcl.errors import InvalidInputError
from keras_rcl.report.tables import audit_text
from keras_rcl.runtime.progress import StderrProgress
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.atomic import json_text
from keras_rcl.vocabulary.attacks import parse_attack
from keras_rcl.vocabulary.claim import AuditBudget


# One parameter per option that is not passed on as it is.
@click.command(short_help="Test a claim of robust accuracy.")
@click.argument("model", type=shared.FOLDER)
@click.option("--claim", "share", metavar="SHARE", help="The claimed robust accuracy, such as 60.4% or 0.604.")
@click.option("--record", type=shared.FOLDER, help="A record.json of `attack` whose claim is tested.")
@shared.norm_option("The norm of the claim; linf, or the record's, by default.")
@click.option("--epsilon", help="The epsilon of the claim; 8/255, or the record's, by default.")
@click.option("--transfer-from", multiple=True, type=shared.FOLDER, help="A model to craft images on; may be repeated.")
@shared.data_options()
@click.option(
    "--check-images", type=shared.COUNT, default=100, show_default=True, help="The number of images of each check."
)
@click.option(
    "--verifier",
    shell_complete=complete_attack,
    help="The attack that the claim is compared with; autoattack by default.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Attack only as many images as are needed for the verdict of an audit of all images, with this probability, "
    "such as 0.99.",
)
@shared.foreign_model_options
@shared.output_dir_option("audits/<model>")
@shared.overwrite_option("Replace the folder, or an interrupted audit.")
@shared.json_option("the audit")
def audit(model, share, record, norm, epsilon, check_images, verifier, confidence, as_json, **options):
    """Test a claim of robust accuracy, or a record, by checks and AutoAttack; the exit status is 1 if it falls.

    If the command is interrupted or killed, the same command resumes it.
    """
    if (share is None) == (record is None):
        raise InvalidInputError("give either --claim SHARE or --record FILE")
    radius = None if epsilon is None else parse_epsilon(epsilon)
    claim = None if share is None else parse_claim(share, norm, radius)
    check_not_in([verifier or ""], "epsilon", "the --epsilon of the claim")
    verifier = None if verifier is None else parse_attack(verifier)
    start_tensorflow()
    from keras_rcl.workflows.audit import audit_model

    with StderrProgress() as progress:
        found, written = audit_model(
            model,
            claim=claim,
            record=record,
            norm=norm,
            epsilon=radius,
            budget=AuditBudget(num_images=check_images, verifier=verifier, verdict_confidence=confidence),
            progress=progress,
            **options,
        )
    print_model_notes(found["model"])
    click.echo(json_text(found) if as_json else audit_text(found, written))
    return int(found["verdict"] == "falls")
